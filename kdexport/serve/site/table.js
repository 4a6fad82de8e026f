/** Copies as CSV, with the columns that `kdexport write` has for the same things. */

const COLUMNS = [
  "brief", "place", "product", "channel", "language", "status", "copy", "approved", "violations",
  "nearest", "lengths", "bundle", "seed",
];
const MARK = "\ufeff"; // by which spreadsheets know UTF-8

/** RFC 4180. */
export function csv(rows) {
  return MARK + rows.map((cells) => `${cells.map(quoted).join(",")}\r\n`).join("");
}

function quoted(cell) {
  const text = String(cell ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The rows of runs, header first; one that came to nothing has one row, which says why. */
export function rowsOf(runs) {
  return [COLUMNS, ...runs.flatMap((run) => rowsOfRun(run).map(inOrder))];
}

const inOrder = (row) => COLUMNS.map((name) => row[name]);

function rowsOfRun({ brief, seed, model, copies, problem }) {
  const { product, channel = "", language = "en" } = brief;
  const told = { brief: brief.id, product, channel, language, bundle: model, seed };
  if (problem) return [{ ...told, place: 1, status: "error", violations: problem }];
  return copies.map(({ state, text, reasons, lengths }, at) => ({
    ...told,
    place: at + 1,
    status: state,
    [state === "fail" ? "nearest" : "copy"]: text,
    violations: reasons.map(({ check, message }) => `${check}: ${message}`).join("; "),
    lengths: lengths.map(briefly).join("; "),
  }));
}

const briefly = ({ part, count, hard, soft, counter }) =>
  `${part} ${count}/${hard ?? soft ?? "-"} ${counter}`.trim();

const BAKERY = "sourdough baked at 5 am; open until sold out";
const KETTLE = "one litre; boils in 2 minutes; from $30";

/** A file to begin with. */
export const EXAMPLE = [
  ["product", "facts", "channel", "language", "audience", "tone", "variants"],
  ["Cinder & Rye Bakery", BAKERY, "sms", "en", "commuters", "warm", "2"],
  ["Tern Kettle", KETTLE, "x_post", "en", "tea drinkers", "witty", "2"],
];
