/** The form of a file: reads it by the server's eyes, and tells what it holds and what is wrong. */

import { examine } from "./api.js";
import { by, counted, download, make } from "./dom.js";
import { csv, EXAMPLE } from "./table.js";

const MOST_PROBLEMS = 20; // that are listed

/** The briefs of the file that was chosen last. */
export let briefs = [];

async function take(file, onRead) {
  briefs = [];
  tell("", []);
  onRead();
  if (!file) return;
  tell(`Reading ${file.name}`, []);
  try {
    const found = await examine(file);
    briefs = found.briefs;
    const wrong = counted(found.problems.length, "problem", "problems");
    const and = found.problems.length ? `, ${wrong}` : "";
    tell(`${file.name}: ${counted(briefs.length, "brief", "briefs")}${and}`, found.problems);
  } catch (error) {
    tell(`${file.name}: ${error.message}`, []);
  }
  onRead();
}

function tell(words, problems) {
  by("file-told").textContent = words;
  const shown = problems
    .slice(0, MOST_PROBLEMS)
    .map(({ where, field, message }) => `${where}: ${field ? `${field}: ` : ""}${message}`);
  const more = problems.length - shown.length;
  if (more) shown.push(`and ${more} more`);
  by("file-problems").replaceChildren(...shown.map((line) => make("li", "", line)));
}

/** Watch the form; `onRead()` is called when `briefs` has changed. */
export function watchFile(onRead) {
  by("file").addEventListener("change", () => take(by("file").files[0], onRead));
  by("example-file").addEventListener("click", () => download("briefs.csv", csv(EXAMPLE)));
}
