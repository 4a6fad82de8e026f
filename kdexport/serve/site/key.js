/** The field for the server's key, which is asked for when the server wants it and kept nowhere. */

import { by } from "./dom.js";

let asked = null;

/** A key from the user; all who ask meanwhile get the same. `why`: what is wrong with the last. */
export function askForKey(why) {
  by("key-problem").textContent = why || "This server wants a key.";
  by("key-problem").classList.toggle("problem", why !== "");
  asked ??= new Promise((resolve) => {
    by("key-form").hidden = false;
    by("key").focus();
    by("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      by("key-form").hidden = true;
      resolve(by("key").value.trim());
      by("key").value = "";
      asked = null;
    }, { once: true });
  });
  return asked;
}
