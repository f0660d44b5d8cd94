// Sphinx scores a page by the best of its words, so that most pages tie. Here each word of the query
// that is in the title counts, and half as much in the best heading of the page. Guides are before
// reference pages, and these before reasons and the names of the Python client.
const wordsOf = (text) => text.toLowerCase().match(/\w{3,}/g) ?? [];
const queried = wordsOf(new URLSearchParams(location.search).get("q") ?? "");
const count = (title) =>
  queried.filter((word) =>
    wordsOf(title).some((other) => word.startsWith(other) || other.startsWith(word)),
  ).length;
const bestHeading = (page) => {
  const number = Search._index.docnames.indexOf(page);
  const counts = Object.entries(Search._index.alltitles)
    .filter(([, places]) => places.some(([file]) => file === number))
    .map(([title]) => count(title));
  return Math.max(0, ...counts);
};
const rank = (page) => {
  if (/^docs\/(guides|operate)/.test(page)) return 5;
  return page.startsWith("docs/background") ? -5 : 0;
};

var Scorer = {
  score: ([page, title, anchor, , score, , kind]) =>
    kind === "object"
      ? score
      : score + 10 * count(title) + 5 * bestHeading(page) + rank(page) + (anchor ? 10 : 0),
  // These are Sphinx's own.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
