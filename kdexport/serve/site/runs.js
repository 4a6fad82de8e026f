/** A run: a brief and the copies that come of it, side by side. Shows what it is told. */

import { copyOf, counted, make, toClipboard } from "./dom.js";
import { lengthItems, markedText, passedChecks, reasonItems } from "./marks.js";

const BADGES = {
  writing: "Writing",
  pass: "✓ Passes",
  warn: "! Look again",
  fail: "✗ Has a fault",
  stopped: "Stopped",
};
const WORST = ["fail", "stopped", "warn", "pass"];
const SHOWN_MS = 1600; // that a button says it has copied

/** One copy, as it grows and as it is reviewed. */
class Copy {
  constructor(number, language, say) {
    this.state = "writing";
    this.text = "";
    this.lengths = [];
    this.reasons = [];
    this.element = copyOf("copy-template");
    this.element.setAttribute("aria-label", `Copy ${number + 1}`);
    this.parts = Object.fromEntries(
      ["badge", "text", "lengths", "reasons", "passed", "take"].map((name) => [
        name, this.element.querySelector(`.${name}`),
      ]),
    );
    this.parts.text.lang = language;
    this.parts.take.setAttribute("aria-label", `Copy ${number + 1} to the clipboard`);
    this.parts.take.addEventListener("click", () => this.#take(number, say));
  }

  async #take(number, say) {
    const { take } = this.parts;
    try {
      await toClipboard(this.text);
      take.textContent = "Copied ✓";
      say(`Copy ${number + 1} is on the clipboard.`);
    } catch (error) {
      say(error.message);
    }
    setTimeout(() => (take.textContent = "Copy"), SHOWN_MS);
  }

  become(state) {
    this.state = this.element.dataset.state = state;
    this.parts.badge.textContent = BADGES[state];
    this.parts.take.hidden = state === "writing" || !this.text;
  }

  add(text, lengths) {
    const shown = this.text ? text : text.trimStart();
    this.text += shown;
    this.parts.text.append(shown);
    this.#measure(lengths);
  }

  #measure(lengths) {
    this.lengths = lengths;
    this.parts.lengths.replaceChildren(...lengthItems(lengths));
  }

  review({ text, review: { passed, checks, lengths, findings } }) {
    this.text = text;
    this.reasons = [...findings].sort((one, other) => other.hard - one.hard);
    this.parts.text.replaceChildren(...markedText(text, this.reasons));
    this.#measure(lengths);
    this.parts.reasons.replaceChildren(...reasonItems(this.reasons));
    this.parts.passed.replaceChildren(...passedChecks(checks, findings));
    this.become(!passed ? "fail" : findings.length ? "warn" : "pass");
  }
}

/** `again(run)` is called where another try is wanted; `say(words)` tells the user. */
export class Run {
  constructor(brief, extra, { choices, again, say }) {
    this.brief = brief;
    this.extra = extra; // fields of the request beside the brief
    this.seed = brief.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
    this.model = choices.model;
    this.say = say;
    this.element = copyOf("run-template");
    const channel = choices.channels.find(({ name }) => name === (brief.channel ?? "social_post"));
    const language = choices.languages.find(({ code }) => code === (brief.language ?? "en"));
    this.language = language?.code ?? "en";
    this.#part("h3").textContent = brief.product;
    const told = [brief.id, channel?.label, language?.name, brief.audience, brief.campaign];
    this.#part(".meta").textContent = told.filter(Boolean).join(" · ");
    this.#part(".again").addEventListener("click", () => again(this));
    this.clear("waiting");
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }

  #become(state) {
    this.state = this.element.dataset.state = state;
  }

  /** What is asked of the server. */
  get request() {
    return { brief: this.brief, seed: this.seed, ...this.extra };
  }

  clear(state) {
    this.copies = [];
    this.problem = "";
    this.tell("");
    this.#part(".again").hidden = true;
    this.#part(".copies").replaceChildren();
    this.#part(".cost").textContent = state === "waiting" ? "Waits for its turn" : "";
    this.#become(state);
  }

  begin() {
    this.clear("writing");
    for (let at = 0; at < (this.brief.variants ?? 1); at += 1) {
      this.copies.push(new Copy(at, this.language, this.say));
    }
    this.#part(".copies").replaceChildren(...this.copies.map(({ element }) => element));
  }

  /** A line above the copies; none where it is empty. */
  tell(words) {
    this.#part(".problem").textContent = words;
    this.#part(".problem").hidden = !words;
    if (words) this.#part(".cost").textContent = "";
  }

  add({ variant, text, lengths }) {
    this.tell("");
    this.copies[variant].add(text, lengths);
  }

  finish({ copies, usage }, seconds) {
    copies.forEach((copy, at) => this.copies[at].review(copy));
    const n = usage.completion_tokens;
    const cost = [
      counted(n, "token", "tokens"),
      `${seconds.toFixed(2)} s`,
      `${Math.round(n / seconds).toLocaleString("en")} tok/s`,
      `seed ${this.seed}`,
    ];
    this.#part(".cost").replaceChildren(...cost.map((words) => make("span", "", words)));
    this.#become(WORST.find((state) => this.copies.some((copy) => copy.state === state)));
  }

  fail(words, mayBeTriedAgain = true) {
    this.clear("error");
    this.problem = words;
    this.tell(words);
    this.#part(".again").hidden = !mayBeTriedAgain;
  }

  stop() {
    const written = this.copies.filter(({ text }) => text);
    if (!written.length) return this.fail("Stopped before anything was written.");
    this.tell("");
    for (const copy of this.copies) if (copy.state === "writing") copy.become("stopped");
    this.#part(".again").hidden = false;
    this.#become("stopped");
  }
}
