"""The overview's page: what stands around the cards. It loads nothing from anywhere."""

from __future__ import annotations

STYLE = """
:root { color-scheme: dark; --back: #101418; --card: #1a2026; --line: #333c45; --text: #e8ecf0; --faint: #9aa4ae;
  --warn: #f0b34c; --bad: #e86a5c; --good: #6fbf73; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 14px/1.4 system-ui, sans-serif; }
header { position: sticky; top: 0; z-index: 1; padding: 12px 20px; background: var(--back);
  border-bottom: 1px solid var(--line); }
h1 { font-size: 18px; margin: 0 0 2px; }
header p { margin: 0 0 8px; color: var(--faint); }
header .notice { color: var(--warn); }
select, input { padding: 5px 8px; font: inherit; color: var(--text); background: var(--card);
  border: 1px solid var(--line); border-radius: 4px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px; padding: 16px 20px; }
article { padding-bottom: 8px; overflow: hidden; background: var(--card); border-radius: 6px;
  content-visibility: auto; contain-intrinsic-size: 320px 330px; }
article[hidden] { display: none; }
article h2 { font-size: 14px; margin: 8px 12px 4px; overflow-wrap: anywhere; }
article p { margin: 4px 12px; overflow-wrap: anywhere; }
.picture { display: block; height: 170px; background: #101418; }
.picture img { display: block; width: 100%; height: 100%; object-fit: contain; }
.picture.none { display: grid; place-items: center; color: var(--faint); }
.faint { color: var(--faint); font-size: 12px; }
a { color: #8ab8ef; }
.status, .flag { display: inline-block; margin-right: 5px; padding: 0 8px; font-size: 12px; color: var(--back);
  background: var(--good); border-radius: 9px; }
.status.failed { background: var(--bad); }
.status.left-out { background: var(--faint); }
.flag { background: var(--warn); }
dialog { max-width: 98vw; max-height: 98vh; padding: 0; border: 0; color: var(--text); background: #000; }
dialog img { display: block; max-width: 98vw; max-height: 90vh; }
dialog p { margin: 6px 12px; }
"""

SCRIPT = """
"use strict";
const cards = [...document.querySelectorAll("article")];
const [status, flag, text, shown] = ["status", "flag", "text", "shown"].map(id => document.getElementById(id));
const dialog = document.querySelector("dialog");
let current = -1;

function filter() {
  const part = text.value.toLowerCase();
  for (const card of cards) {
    const flags = JSON.parse(card.dataset.flags);
    const flagged = !flag.value || (flag.value === "*" ? flags.length > 0 : flags.includes(flag.value));
    card.hidden = !(flagged && (!status.value || card.dataset.status === status.value)
      && card.textContent.toLowerCase().includes(part));
  }
  const count = cards.filter(card => !card.hidden).length;
  shown.textContent = `${count} of ${cards.length} shown. Click a picture, then flip through with the arrow keys.`;
}

function show(index, step) {
  while (cards[index] && (cards[index].hidden || !cards[index].querySelector("a.picture"))) index += step;
  if (!cards[index]) return;
  current = index;
  dialog.querySelector("img").src = cards[index].querySelector("a.picture").getAttribute("href");
  dialog.querySelector("p").textContent = cards[index].querySelector("h2").textContent;
  if (!dialog.open) dialog.showModal();
}

for (const control of [status, flag, text]) control.addEventListener("input", filter);
cards.forEach((card, index) => card.querySelector("a.picture")?.addEventListener("click", event => {
  event.preventDefault();
  show(index, 1);
}));
dialog.addEventListener("click", () => dialog.close());
document.addEventListener("keydown", event => {
  if (!dialog.open) return;
  if (event.key === "ArrowRight") show(current + 1, 1);
  if (event.key === "ArrowLeft") show(current - 1, -1);
});
filter();
"""

# Filled by str.format.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{counts}</h1>
<p>{model} <span class="notice">{notice}</span></p>
<select id="status" aria-label="Status"><option value="">every status</option>{statuses}</select>
<select id="flag" aria-label="Flag"><option value="">with and without flags</option>
<option value="*">any flag</option>{flags}</select>
<input id="text" type="search" placeholder="part of a name" aria-label="Part of a name">
<span id="shown" class="faint"></span>
</header>
<main>
"""

TAIL = """</main>
<dialog><img alt=""><p></p></dialog>
<script>{script}</script>
</body>
</html>
"""
