/** What the server counted and found in a copy, as elements. Counts nothing itself. */

import { make } from "./dom.js";

const OF_THE_WHOLE = new Set(["length", "language"]);
const LEAST_FOR_A_BAR = 10; // below it a number says more

/** “messages”, or “message” of one. */
const ofSo = (n, several) => (n === 1 ? several.replace(/s\b/, "") : several);

/** A channel's limits in a sentence. `units`: what each counter counts, in words. */
export function limitsOf(channel, units) {
  const parts = Object.entries(channel.parts).map(([name, part]) => {
    const many = part.min === part.max ? `${part.max}` : `${part.min} to ${part.max}`;
    const each = Object.entries(part.limits).map(([, limit]) => ` of ${limit.hard ?? limit.soft}`);
    return `${many} × ${name}${each.join("")}`;
  });
  const whole = Object.entries(channel.limits).map(([counter, { min, soft, hard }]) => {
    const bounds = [["at least", min], ["at most", hard], ["better at most", soft]];
    const [[words, n], ...others] = bounds.filter(([, bound]) => bound !== null);
    const rest = others.map(([more, bound]) => `, ${more} ${bound}`);
    return `${words} ${n} ${ofSo(n, units[counter])}${rest.join("")}`;
  });
  const all = [...parts, ...whole].join("; ");
  return all ? `${all.charAt(0).toUpperCase()}${all.slice(1)}.` : "No limit that is written down.";
}

/** "fail" beyond what must not be, "warn" beyond what is better not, else "pass". */
function levelOf({ count, soft, hard }) {
  if (hard !== null && count > hard) return "fail";
  return soft !== null && count > soft ? "warn" : "pass";
}

/** One line for each length: a number, its limit, and a bar. */
export function lengthItems(lengths) {
  return lengths.map((length) => {
    const { part, unit, count, soft, hard, detail } = length;
    const most = levelOf(length) === "pass" ? (soft ?? hard) : (hard ?? soft);
    const item = make("li", "length");
    item.dataset.level = levelOf(length);
    const of = most === null ? "" : ` of ${most}`;
    const what = part ? `in ${part}` : ofSo(most ?? count, unit);
    item.append(make("b", "", `${count}`), `${of} ${what}${detail ? ` (${detail})` : ""}`);
    if (most >= LEAST_FOR_A_BAR) item.append(barOf(count / most));
    return item;
  });
}

function barOf(share) {
  const fill = make("span", "fill");
  fill.style.setProperty("--share", Math.min(1, share));
  return make("span", "track", fill);
}

/** A copy's text, in which what was found is marked. Spans are in code points. */
export function markedText(text, findings) {
  const letters = [...text];
  const found = new Array(letters.length).fill(null);
  for (const finding of findings) {
    if (!finding.span || OF_THE_WHOLE.has(finding.check)) continue;
    for (let at = finding.span[0]; at < finding.span[1]; at += 1) {
      if (!found[at]?.hard) found[at] = finding;
    }
  }
  const nodes = [];
  for (let begin = 0, end; begin < letters.length; begin = end) {
    for (end = begin + 1; end < letters.length && found[end] === found[begin]; ) end += 1;
    const piece = letters.slice(begin, end).join("");
    const mark = found[begin] && make("mark", found[begin].hard ? "fail" : "warn", piece);
    if (mark) mark.title = found[begin].message;
    nodes.push(mark ?? piece);
  }
  return nodes;
}

/** One line for each finding: its mark, the check, the reason. */
export function reasonItems(findings) {
  return findings.map(({ check, message, hard }) => {
    const item = make("li", hard ? "fail" : "warn");
    item.append(make("span", "mark", hard ? "✗" : "!"), make("b", "", check), ` ${message}`);
    return item;
  });
}

/** The checks that found nothing. */
export function passedChecks(checks, findings) {
  const faulty = new Set(findings.map(({ check }) => check));
  const passed = checks.filter((check) => !faulty.has(check));
  return passed.map((check) => make("span", "", `✓ ${check}`));
}
