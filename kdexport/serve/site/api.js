/** What the server is asked, and how it answers. Knows nothing of the page. */

const LATER = new Set([429, 503]); // busy, or still loading
let key = "";
let askForKey = null;

/** `asker(why)`: resolves to a key; `why`: the server's line on the one it was given, if any. */
export function whenLocked(asker) {
  askForKey = asker;
}

/** A request that the server did not serve. `param`: the field; `seconds`: when to ask again. */
export class Refused extends Error {
  constructor(message, { status = 0, param = null, seconds = 0 } = {}) {
    super(message);
    Object.assign(this, { status, param, seconds });
  }
}

const opened = (text) => text.charAt(0).toUpperCase() + text.slice(1);

async function refusalOf(answer) {
  const told = await answer.json().catch(() => ({}));
  const line = told.error?.message ?? `The server answers ${answer.status}`;
  const message = opened(line.replace(/^brief\./, ""));
  const seconds = Number(answer.headers.get("Retry-After")) || 0;
  return new Refused(message, { status: answer.status, param: told.error?.param, seconds });
}

async function ask(path, options = {}) {
  for (;;) {
    const used = key;
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    const how = { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers };
    const answer = await fetch(path, how).catch((error) => {
      if (options.signal?.aborted) throw error;
      throw new Refused("The server cannot be reached. Is it still running?");
    });
    if (answer.ok) return answer;
    const refusal = await refusalOf(answer);
    if (refusal.status !== 401 || !askForKey) throw refusal;
    if (key === used) key = await orAborted(askForKey(used && refusal.message), options.signal);
  }
}

function orAborted(promise, signal) {
  if (!signal) return promise;
  return Promise.race([promise, new Promise((_, reject) => onAbort(signal, reject))]);
}

function onAbort(signal, reject) {
  if (signal.aborted) reject(signal.reason);
  signal.addEventListener("abort", () => reject(signal.reason), { once: true });
}

/** What a brief may choose from. */
export const choices = async () => (await ask("v1/copy")).json();

/** The briefs of a file, and what is wrong with it. */
export async function examine(file) {
  const path = `v1/briefs?name=${encodeURIComponent(file.name)}`;
  return (await ask(path, { method: "POST", body: file })).json();
}

/** "ok", "loading", "draining" or "unreachable". */
export async function health() {
  try {
    return (await (await fetch("health", { cache: "no-store" })).json()).status;
  } catch {
    return "unreachable";
  }
}

/** The events of copies being written: pieces of text with lengths, at last all with reviews. */
export async function* copyEvents(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_lengths: true } };
  const answer = await ask("v1/copy", { method: "POST", body: JSON.stringify(asked), signal });
  for await (const data of dataOf(answer.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refused(opened(event.error.message));
    yield event;
  }
  throw new Refused("The server ended before the copy did.");
}

/** The data of server-sent events, each of which this server puts on one line. */
async function* dataOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Refused("The connection was lost.");
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Do something now, or when a busy server says; `onWait(refusal)` is told each time. */
export async function patiently(work, onWait, signal) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!LATER.has(error.status)) throw error;
      onWait(error);
      const after = new Promise((resolve) => setTimeout(resolve, 1000 * (error.seconds || 1)));
      await orAborted(after, signal);
    }
  }
}
