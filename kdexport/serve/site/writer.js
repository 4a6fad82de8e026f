/** Has runs written, one or several at a time, and measures how quickly. Draws nothing. */

import { copyEvents, patiently } from "./api.js";

export const AT_ONCE = 4; // requests under way for a file: they share the server's batch
const EVERY_MS = 200;

/** Tokens a second of everything under way, from the first asking; `show` is told now and then. */
export class Speed {
  #show;
  #active = 0;
  #tokens = 0;
  #began = 0;
  #shown = 0;

  constructor(show) {
    this.#show = show;
  }

  begin() {
    if (this.#active === 0) [this.#tokens, this.#began] = [0, performance.now()];
    this.#active += 1;
  }

  add(tokens) {
    this.#tokens += tokens;
    const now = performance.now();
    if (this.#tokens && now - this.#shown >= EVERY_MS) this.#tell(now);
  }

  end() {
    this.#active -= 1;
    if (this.#tokens) this.#tell(performance.now());
  }

  #tell(now) {
    this.#shown = now;
    this.#show((1000 * this.#tokens) / (now - this.#began));
  }
}

/** Write one run into its view. Returns what ended it early, or null. */
export async function write(run, speed, signal) {
  let began;
  const attempt = async () => {
    run.begin();
    began = performance.now();
    speed.begin();
    const tokens = run.copies.map(() => 0);
    try {
      for await (const event of copyEvents(run.request, signal)) {
        if (event.copies) {
          run.finish(event, (performance.now() - began) / 1000);
        } else {
          run.add(event);
          speed.add(event.n_tokens - tokens[event.variant]);
          tokens[event.variant] = event.n_tokens;
        }
      }
    } finally {
      speed.end();
    }
  };
  const onWait = ({ message, seconds }) => {
    run.clear("waiting");
    run.tell(`${message}. Trying again in ${seconds || 1} s.`);
  };
  try {
    await patiently(attempt, onWait, signal);
    return null;
  } catch (error) {
    if (signal.aborted) run.stop();
    else run.fail(error.message, error.status !== 400);
    return error;
  }
}

/** Write runs in their order, a few at a time; `onDone(run)` after each. */
export async function writeAll(runs, speed, signal, onDone) {
  const waiting = runs[Symbol.iterator]();
  const worker = async () => {
    for (const run of waiting) {
      if (signal.aborted) run.stop();
      else await write(run, speed, signal);
      onDone(run);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
