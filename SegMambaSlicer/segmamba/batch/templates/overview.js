"use strict";
const inOrder = [...document.querySelectorAll("article")];
let cards = inOrder;
const [status, flag, order, text, shown] = ["status", "flag", "order", "text", "shown"]
  .map(id => document.getElementById(id));
const dialog = document.querySelector("dialog");
let current = -1;

// Sorting keeps the order of equals.
function sort() {
  cards = order.value ? [...inOrder].sort((a, b) => a.dataset.rank - b.dataset.rank) : inOrder;
  document.querySelector("main").append(...cards);
}

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
order.addEventListener("input", sort);
inOrder.forEach(card => card.querySelector("a.picture")?.addEventListener("click", event => {
  event.preventDefault();
  show(cards.indexOf(card), 1);
}));
dialog.addEventListener("click", () => dialog.close());
document.addEventListener("keydown", event => {
  if (!dialog.open) return;
  if (event.key === "ArrowRight") show(current + 1, 1);
  if (event.key === "ArrowLeft") show(current - 1, -1);
});
sort();
filter();
