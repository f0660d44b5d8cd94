// The list of tasks. Filters and links to other pages replace the list only, and Shift selects a
// range of tasks.

import { refresh, showNotice } from "./page.js";

let shownSearch = location.search;
// The changes of filters are made one after the other: until the list of a change is shown, the
// links in it still contain the previous filters.
let shown = Promise.resolve();
const afterwards = (change) => (shown = shown.finally(change));
const list = document.getElementById("list");
const search = document.getElementById("search");
const fields = document.querySelectorAll("#search > :is(input, select)");
const pageBox = () => document.getElementById("page-box");
const boxes = () => [...document.querySelectorAll("#rows [name=taskId]")];

// --- filters and pages ---------------------------------------------------------------------

async function show(address) {
  history.pushState(null, "", address);
  await showAddress();
  // The scroll position remains, unless the start of the list is above the window.
  if (list.getBoundingClientRect().top < 0) document.getElementById("filters").scrollIntoView();
}

async function showAddress() {
  shownSearch = location.search;
  showNotice("");
  await refresh();
  fillForm();
  // The element that had the focus may have been removed.
  if (document.activeElement === document.body) list.focus({ preventScroll: true });
  document.getElementById("shown").textContent = `Tasks on this page: ${boxes().length}`;
}

// Fills the form from the address, since a link may have removed a filter of the form.
function fillForm() {
  const values = new URLSearchParams(location.search);
  for (const field of fields) {
    if (field !== document.activeElement) field.value = values.get(field.name) ?? "";
  }
}

// Applies the current values of these fields.
function apply(changed) {
  const chosen = Array.from(changed, ({ name, value }) => [name, value]);
  afterwards(() => {
    const values = new URLSearchParams(location.search);
    for (const name of ["cursor", "open"]) values.delete(name);
    for (const [name, value] of chosen) {
      if (value) values.set(name, value);
      else values.delete(name);
    }
    const query = values.toString();
    if (location.search === (query && `?${query}`)) return;
    return show(query ? `?${query}` : location.pathname);
  });
}

search?.addEventListener("change", ({ target }) => apply([target]));
search?.addEventListener("submit", (event) => {
  if (event.submitter?.hasAttribute("formaction")) return;
  event.preventDefault();
  apply(fields);
});

// The link in the current list that corresponds to a link in the previous list.
function counterpart(link) {
  if (link.isConnected) return link;
  const same = (other) => other.textContent === link.textContent;
  return document.getElementById(link.id) ?? [...document.querySelectorAll("main a")].find(same);
}

addEventListener("click", (event) => {
  const link = event.target.closest?.("main a:not(#notice a)");
  const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
  if (!search || !link || !isPlain || link.pathname !== location.pathname) return;
  event.preventDefault();
  afterwards(() => {
    const current = counterpart(link);
    return current && show(current.href);
  });
});

addEventListener("popstate", () => {
  // Links to an element of the page cause this event too.
  if (search && location.search !== shownSearch) afterwards(showAddress);
});

// --- the selection -------------------------------------------------------------------------

let lastClicked = "";

// A click with Shift selects all boxes from the previously clicked box to this box.
function selectRange(box) {
  const all = boxes();
  const ends = [all.findIndex(({ value }) => value === lastClicked), all.indexOf(box)];
  if (ends[0] < 0) return;
  const [from, to] = ends.sort((one, other) => one - other);
  for (const between of all.slice(from, to + 1)) between.checked = box.checked;
}

function showSelection() {
  const count = boxes().filter((box) => box.checked).length;
  pageBox().checked = count > 0 && count === boxes().length;
  pageBox().indeterminate = count > 0 && !pageBox().checked;
  const text = document.getElementById("selected-count");
  if (text) text.textContent = count ? `${count} selected` : "";
}

if (pageBox()) {
  addEventListener("click", ({ target, shiftKey }) => {
    if (!target.matches?.("#rows [name=taskId]")) return;
    if (shiftKey) selectRange(target);
    lastClicked = target.value;
    showSelection();
  });
  addEventListener("change", ({ target }) => {
    if (target !== pageBox()) return;
    for (const box of boxes()) box.checked = target.checked;
    showSelection();
  });
  document.addEventListener("refreshed", showSelection);
  addEventListener("pageshow", showSelection);
}

// Restores the scroll position after an action on the selected tasks.
const PLACE = "place";
document.addEventListener("submit", ({ target }) => {
  if (target.id === "selected")
    sessionStorage.setItem(PLACE, JSON.stringify([location.search, scrollY]));
});
const [place, y] = JSON.parse(sessionStorage.getItem(PLACE) ?? "[]");
sessionStorage.removeItem(PLACE);
if (place === location.search) scrollTo(0, y);
