// What the pages do better with a script; each works without. All HTML comes from the server, which escapes it.
"use strict";

const POLL_MILLISECONDS = 2000;

async function fetchPage(url, options = {}) {
  const answer = await fetch(url, { ...options, headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// A file that is chosen or dropped is checked at once, and the answer shown below the form.
function checkFilesOf(form) {
  const input = form.querySelector("input[type=file]");
  const result = document.getElementById("check");
  const said = document.getElementById("check-said");
  let latest = 0;

  async function check() {
    if (!input.files.length) return;
    const number = ++latest;
    try {
      const page = await fetchPage(form.dataset.check, { method: "POST", body: new FormData(form) });
      if (number !== latest) return; // another file was chosen meanwhile
      const found = page.getElementById("check") || page.querySelector("main");
      result.replaceChildren(...found.childNodes);
      said.textContent = result.querySelector("h1, h2").textContent;
      for (const offer of result.querySelectorAll("[data-encoding]")) {
        offer.hidden = false;
        offer.addEventListener("click", () => { form.elements.encoding.value = offer.dataset.encoding; check(); });
      }
    } catch {
      said.textContent = result.textContent = "The file could not be checked just now; it will be when it is uploaded.";
    }
  }

  input.addEventListener("change", check);
  form.elements.encoding.addEventListener("change", check);
  // The same file, mended and saved, can be chosen again only when the browser has let go of it.
  input.addEventListener("click", () => { input.value = ""; });

  form.querySelector(".drop-hint").hidden = false;
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("dropping"); });
  form.addEventListener("dragleave", () => form.classList.remove("dropping"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("dropping");
    if (event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      check();
    }
  });
}


function countDown() {
  const seconds = document.getElementById("seconds");
  if (seconds) seconds.textContent = Math.max(0, Number(seconds.textContent) - 1);
}

// A batch that runs is kept up to date: told by the stream when there is one, else by asking now and then.
function follow(batch) {
  let updating = false;
  let again = false;

  async function update() {
    if (updating) { again = true; return; }
    updating = true;
    try {
      const page = await fetchPage(location.href);
      const fresh = page.getElementById("batch");
      for (const part of fresh ? fresh.children : []) {
        const shown = document.getElementById(part.id);
        if (shown && shown.innerHTML !== part.innerHTML) shown.innerHTML = part.innerHTML;
      }
      if (fresh && !fresh.dataset.events) stop();
    } catch { /* the service is away for a moment; the next one will tell */ }
    updating = false;
    if (again) { again = false; update(); }
  }

  const stream = new EventSource(batch.dataset.events);
  for (const kind of ["batch", "row", "progress"]) stream.addEventListener(kind, update);
  const poll = setInterval(() => { if (stream.readyState !== EventSource.OPEN) update(); }, POLL_MILLISECONDS);
  const clock = setInterval(countDown, 1000);

  function stop() {
    stream.close();
    clearInterval(poll);
    clearInterval(clock);
  }
}

// A second click while the first is being sent would make a second batch.
const sent = new Set();
addEventListener("submit", (event) => {
  if (sent.has(event.target)) event.preventDefault();
  else if (event.target.method === "post") sent.add(event.target);
});
addEventListener("pageshow", () => sent.clear());

const form = document.getElementById("upload");
if (form && document.getElementById("check")) checkFilesOf(form);
const batch = document.getElementById("batch");
if (batch && batch.dataset.events) follow(batch);
