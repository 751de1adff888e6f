// What the pages do better with a script; each works without. All HTML comes from the server, which escapes it.
"use strict";

const POLL_MILLISECONDS = 2000;

document.documentElement.classList.add("with-script");

async function fetchPage(url, options = {}) {
  const answer = await fetch(url, { ...options, headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// A browser reads no file that was saved again after it was chosen, and would answer a form with an error of its own.
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function askForFileAgain(input) {
  input.value = "";
  input.setCustomValidity("The file was saved again after it was chosen. Choose it once more.");
  input.addEventListener("input", () => input.setCustomValidity(""), { once: true });
  input.dispatchEvent(new Event("change"));
  input.reportValidity();
}

// A file that is chosen or dropped is checked at once, and the answer shown beside the form.
function checkFilesOf(form) {
  const input = form.querySelector("input[type=file]");
  const said = document.getElementById("check-said");
  const parts = [document.getElementById("check"), document.getElementById("check-rows")];
  let latest = 0;

  async function check() {
    const number = ++latest;
    const file = input.files[0];
    let found = [[], []];
    let words = "";
    if (file) {
      try {
        const page = await fetchPage(form.dataset.check, { method: "POST", body: new FormData(form) });
        found = parts.map((part) => page.getElementById(part.id)?.childNodes ?? []);
        words = page.querySelector("#check h1, #check h2").textContent;
      } catch {
        words = "The file could not be checked just now; it will be when it is uploaded.";
        found[0] = [words];
        if (number === latest && !await isReadable(file)) return askForFileAgain(input);
      }
    }
    if (number !== latest) return; // another file was chosen meanwhile
    said.textContent = words;
    parts.forEach((part, place) => part.replaceChildren(...found[place]));
    for (const offer of parts[0].querySelectorAll("[data-encoding]")) {
      offer.hidden = false;
      offer.addEventListener("click", () => {
        form.elements.encoding.value = offer.dataset.encoding;
        form.elements.encoding.focus(); // the offer itself goes
        check();
      });
    }
  }

  input.addEventListener("change", check);
  input.addEventListener("cancel", check);
  form.elements.encoding.addEventListener("change", check);
  // The same file, mended and saved, can be chosen again only when the browser has let go of it.
  input.addEventListener("click", () => { input.value = ""; });

  // Anywhere on the page: a file that misses the form would otherwise be opened in its place.
  form.querySelector(".drop-hint").hidden = false;
  addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("dropping"); });
  addEventListener("dragleave", () => form.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("dropping");
    if (event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      input.setCustomValidity("");
      check();
    }
  });
}

// In the words of the macro time_left.
function countDown() {
  const left = document.getElementById("seconds");
  if (!left) return;
  const seconds = left.dataset.seconds = Math.max(1, left.dataset.seconds - 1);
  left.textContent = seconds >= 100 ? `${Math.ceil(seconds / 60)} minutes` : `${seconds} second${seconds === 1 ? "" : "s"}`;
}

// A batch that runs is kept up to date: told by the stream when there is one, else by asking now and then.
function follow(batch) {
  const url = batch.dataset.events;
  // What was served last: what the reader opened meanwhile stays open.
  const served = new Map(Array.from(batch.children, (part) => [part.id, part.innerHTML]));
  const away = document.getElementById("away");
  let stream;
  let updating = false;
  let again = false;

  async function update() {
    if (updating) { again = true; return; }
    updating = true;
    try {
      const page = await fetchPage(location.href);
      const fresh = page.getElementById("batch");
      away.hidden = fresh !== null;
      if (fresh) show(page, fresh);
      else if (page.querySelector("[data-status='404']")) location.reload();
    } catch {
      away.hidden = false;
    }
    updating = false;
    if (again) { again = false; update(); }
  }

  function show(page, fresh) {
    document.title = page.title;
    for (const part of fresh.children) {
      if (!part.id || served.get(part.id) === part.innerHTML) continue;
      served.set(part.id, part.innerHTML);
      document.getElementById(part.id).innerHTML = part.innerHTML;
    }
    if (!fresh.dataset.events) stop();
  }

  // A browser keeps few connections to one host for all its tabs, so only one that is looked at holds one.
  function listen() {
    stream?.close();
    if (document.hidden) return;
    stream = new EventSource(url);
    for (const kind of ["batch", "row", "progress"]) stream.addEventListener(kind, update);
  }

  function stop() {
    document.removeEventListener("visibilitychange", listen);
    stream?.close();
    clearInterval(poll);
    clearInterval(clock);
  }

  document.addEventListener("visibilitychange", listen);
  const poll = setInterval(() => { if (stream?.readyState !== EventSource.OPEN) update(); }, POLL_MILLISECONDS);
  const clock = setInterval(countDown, 1000);
  listen();
}

// A second click while the first is being sent would make a second batch.
const sent = new Set();
const looked = new Set();
addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.method !== "post" || looked.delete(form)) return;
  if (sent.has(form)) { event.preventDefault(); return; }
  sent.add(form);
  const input = form.querySelector("input[type=file]");
  if (!input) return;
  event.preventDefault();
  if (await isReadable(input.files[0])) {
    looked.add(form);
    form.requestSubmit(event.submitter);
  } else {
    sent.delete(form);
    askForFileAgain(input);
  }
});
addEventListener("pageshow", () => sent.clear());

const form = document.getElementById("upload");
if (form) checkFilesOf(form);
const batch = document.getElementById("batch");
if (batch?.dataset.events) follow(batch);
