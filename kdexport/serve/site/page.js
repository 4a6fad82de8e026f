/** The page: ties forms, runs and server together. */

import { choices as askChoices, health, whenLocked } from "./api.js";
import { by, counted, download } from "./dom.js";
import { briefs, watchFile } from "./file.js";
import { fillExample, fillPickers, markField, readBrief, readSampling } from "./form.js";
import { askForKey } from "./key.js";
import { Run } from "./runs.js";
import { csv, rowsOf } from "./table.js";
import { Speed, write, writeAll } from "./writer.js";

const AGAIN_MS = 1500; // between two looks at a server that is not ready
const STATES = { ok: "ready", draining: "about to end", unreachable: "not reachable" };
const speed = new Speed((value) => {
  by("speed").textContent = `${Math.round(value).toLocaleString("en")} tok/s`;
});
let choices = { model: "", channels: [], languages: [] };
let runs = []; // as they stand on the page
let work = null; // an AbortController while something is being written

/** Tell the user; `isSeen`: it stands on the page already, and is only to be heard. */
function say(words, isSeen = false) {
  by("status").textContent = words;
  by("status").classList.toggle("unseen", isSeen);
}

/** Show how the server is, until it is ready to write. */
async function watch() {
  for (;;) {
    const status = await health();
    by("state").textContent = STATES[status] ?? status;
    by("state").dataset.state = status;
    if (status === "ok") return;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function begin() {
  await watch();
  choices = await askChoices();
  by("model").textContent = choices.model;
  fillPickers(choices);
}

/** What depends on the runs and on whether something is being written. */
function refresh() {
  const n = counted(briefs.length, "brief", "briefs");
  by("write").textContent = work ? "Stop" : "Write";
  by("write-file").textContent = work ? "Stop" : `Write for ${n}`;
  by("write-file").disabled = !work && briefs.length === 0;
  for (const name of ["write", "write-file"]) by(name).classList.toggle("stops", work !== null);
  by("empty").hidden = runs.length > 0;
  by("actions").hidden = runs.length === 0;
  by("only-label").hidden = runs.length < 2;
  by("runs").classList.toggle("only-faults", by("only").checked && runs.length > 1);
}

/** Have something written that a button or Escape can stop. */
async function writing(words, begun) {
  work = new AbortController();
  say(words);
  refresh();
  const isBelow = by("copies").getBoundingClientRect().top > innerHeight / 2;
  if (isBelow) by("copies").scrollIntoView(); // on a phone
  try {
    return await begun(work.signal);
  } finally {
    work = null;
    refresh();
  }
}

function newRuns(wanted, extra = {}) {
  const added = wanted.map((brief) => new Run(brief, extra, { choices, again, say }));
  runs = [...added, ...runs];
  by("runs").prepend(...added.map(({ element }) => element));
  return added;
}

async function again(run) {
  if (work) return;
  markField(null);
  const n = counted(run.brief.variants ?? 1, "copy", "copies");
  const words = `Writing ${n} for ${run.brief.product}.`;
  const error = await writing(words, (signal) => write(run, speed, signal));
  if (!runs.includes(run)) return;
  if (error) say(run.problem || "Stopped.", run.problem !== "");
  else say(told([run], run.brief.product));
  if (error?.param) markField(error.param);
  if (error && !error.status) watch();
}

async function writeFile() {
  const added = newRuns(briefs);
  const bar = by("progress");
  [bar.max, bar.value, bar.hidden] = [added.length, 0, false];
  const n = counted(added.length, "brief", "briefs");
  const onDone = () => (bar.value += 1);
  await writing(`Writing for ${n}.`, (signal) => writeAll(added, speed, signal, onDone));
  bar.hidden = true;
  if (runs.includes(added[0])) say(told(added, n));
}

/** “3 copies for Rye bread: 2 pass, 1 has a fault.” */
function told(some, whom) {
  const states = some.flatMap(({ copies }) => copies.map(({ state }) => state));
  const count = (wanted) => states.filter((state) => state === wanted).length;
  const [passed, warned, failed] = ["pass", "warn", "fail"].map(count);
  const lost = some.filter(({ problem }) => problem).length;
  const parts = [
    passed && `${passed} ${passed === 1 ? "passes" : "pass"}`,
    warned && `${warned} to look at again`,
    failed && `${failed} ${failed === 1 ? "has a fault" : "have faults"}`,
    lost && `${counted(lost, "brief", "briefs")} came to nothing`,
  ];
  const all = counted(states.length, "copy", "copies");
  return `${all} for ${whom}: ${parts.filter(Boolean).join(", ")}.`;
}

function submitted(form, begun) {
  by(form).addEventListener("submit", (event) => {
    event.preventDefault();
    if (work) work.abort();
    else begun();
  });
}

function clear() {
  work?.abort();
  runs = [];
  by("runs").replaceChildren();
  say("");
  refresh();
  by("copies").focus();
}

submitted("brief-form", () => again(newRuns([readBrief()], readSampling())[0]));
submitted("file-form", writeFile);
watchFile(refresh);
whenLocked(askForKey);
for (const mode of document.querySelectorAll("[name=mode]")) {
  const take = () => mode.checked && (document.body.dataset.mode = mode.value);
  mode.addEventListener("change", take);
  take(); // a browser may remember it from before
}
by("example").addEventListener("click", () => {
  document.querySelector("[name=mode][value=brief]").click();
  fillExample();
  by("write").focus();
});
by("download").addEventListener("click", () => {
  const rows = rowsOf(runs);
  download("copies.csv", csv(rows));
  say(`copies.csv has ${counted(rows.length - 1, "row", "rows")}.`);
});
by("clear").addEventListener("click", clear);
by("only").addEventListener("change", refresh);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") work?.abort();
  const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (sends && !work && by("brief-form").contains(event.target)) by("brief-form").requestSubmit();
});
refresh();
begin().catch((error) => say(error.message));
