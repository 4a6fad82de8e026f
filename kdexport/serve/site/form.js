/** The form of a brief: its pickers, what stands in it, and which field a refusal is about. */

import { by, make } from "./dom.js";
import { limitsOf } from "./marks.js";

const FIRST_CHANNEL = "social_post";
const EXAMPLE = {
  product: "Cinder & Rye Bakery",
  facts: "sourdough baked at 5 am\nrye from a mill two villages away\nopen until sold out",
  channel: "sms",
  tone: "warm",
  audience: "commuters",
  call_to_action: "come by",
};
const form = by("brief-form");
const opened = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function option(value, text) {
  const found = make("option", "", text);
  found.value = value;
  return found;
}

/** Fill the pickers, and tell the chosen channel's limits with where they are written down. */
export function fillPickers({ channels, languages, tones, campaigns, units }) {
  by("channel").replaceChildren(...channels.map(({ name, label }) => option(name, opened(label))));
  by("language").replaceChildren(...languages.map(({ code, name }) => option(code, name)));
  by("tones").replaceChildren(...tones.map((tone) => option(tone, tone)));
  by("campaigns").replaceChildren(...campaigns.map((campaign) => option(campaign, campaign)));
  const names = channels.map(({ name }) => name);
  by("channel").value = names.includes(FIRST_CHANNEL) ? FIRST_CHANNEL : names[0];
  by("language").value = "en";
  const chosen = () => channels.find(({ name }) => name === by("channel").value);
  const told = () => tellLimits(chosen(), units);
  by("channel").addEventListener("change", told);
  told();
}

function tellLimits(channel, units) {
  const links = channel.sources.flatMap(({ title, url }, at) => {
    const link = make("a", "", title.split(/[,:]/)[0]);
    Object.assign(link, { href: url, title, target: "_blank", rel: "noopener noreferrer" });
    return [at ? ", " : " See ", link];
  });
  by("channel-hint").replaceChildren(limitsOf(channel, units), ...links);
}

/** The brief; fields that are empty are left out, so that the server's defaults hold. */
export function readBrief() {
  const brief = {};
  for (const field of form.elements) {
    const text = field.value?.trim();
    if (!field.name || !text) continue;
    if ("list" in field.dataset) brief[field.name] = linesOf(text);
    else brief[field.name] = "number" in field.dataset ? Number(text) : text;
  }
  return brief;
}

const linesOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** Fields of the request beside the brief. */
export function readSampling() {
  const { value } = by("temperature");
  return value === "" ? {} : { temperature: Number(value) };
}

/** Put an example into the form. */
export function fillExample() {
  for (const [name, value] of Object.entries(EXAMPLE)) by(name).value = value;
  by("channel").dispatchEvent(new Event("change"));
}

/** Mark the field that a refusal names, as in "brief.facts.2", and go there; null: unmark all. */
export function markField(param) {
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  const name = (param ?? "").replace(/^brief\./, "").split(".")[0];
  const field = name && form.elements.namedItem(name);
  if (!field) return;
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}
