"""`python -m bench` measures what must be reached, `python -m bench one_upload` only what is named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from bench import beside_a_huge_one, cluster, history, many_uploads, one_upload, rate_limit, throughput, under_load
from bench.harness import Figure, allow_open_files

BENCHES: dict[str, Callable[[], Iterator[Figure]]] = {
    "one_upload": one_upload.measure,
    "rate_limit": rate_limit.measure,
    "many_uploads": many_uploads.measure,
    "throughput": throughput.measure,
    "beside_a_huge_one": beside_a_huge_one.measure,
    "history": history.measure,
    "under_load": under_load.measure,
}
# These need more than this machine's Python, and have nothing that must be reached.
WHEN_NAMED: dict[str, Callable[[], Iterator[Figure]]] = {"cluster": cluster.measure}
LINE = "{:<64} {:>10} {:>14}  {}"


def main(names: list[str]) -> int:
    """Print one table; 0 when every figure was reached, 1 when one was missed, 2 for a name that is none."""
    benches = BENCHES | WHEN_NAMED
    if unknown := [name for name in names if name not in benches]:
        print(f"There is no {', '.join(unknown)}; there are {', '.join(benches)}.", file=sys.stderr)
        return 2
    allow_open_files()
    print(LINE.format("figure", "measured", "must reach", ""), flush=True)
    missed = 0
    for name in names or BENCHES:
        for figure in benches[name]():
            missed += figure.verdict == "MISSED"
            print(LINE.format(figure.what, f"{figure.measured:.3g}", figure.must_reach, figure.verdict), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
