/** Elements of the page. Text goes in as text only. */

/** The element with an id. */
export const by = (id) => document.getElementById(id);

/** A new element with a class and children, which are elements or texts. */
export function make(name, className = "", ...children) {
  const element = document.createElement(name);
  element.className = className;
  element.append(...children);
  return element;
}

/** What is in a template, as an element of its own. */
export const copyOf = (id) => by(id).content.firstElementChild.cloneNode(true);

/** Hand a text to the user as a file. */
export function download(name, text, type = "text/csv") {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Put a text on the clipboard; without the browser's leave for it, as a selection is copied. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const held = make("textarea", "unseen");
    held.value = text;
    const before = document.activeElement;
    document.body.append(held);
    held.select();
    const copied = document.execCommand("copy");
    held.remove();
    before?.focus();
    if (!copied) throw new Error("The browser does not let this page copy.");
  }
}

/** “1 copy”, “3 copies”. */
export const counted = (n, one, several) => `${n.toLocaleString("en")} ${n === 1 ? one : several}`;
