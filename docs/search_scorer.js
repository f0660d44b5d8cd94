// Sphinx scores a page by the best of its words, so that most pages tie. Here each word of the query
// that is in the title counts, and half as much in the best heading of the page, to which the result
// leads if it has all of them. Guides are before reference pages, and these before reasons and the
// names of the Python client.
const wordsOf = (text) => text.toLowerCase().match(/\w{3,}/g) ?? [];
const queried = wordsOf(new URLSearchParams(location.search).get("q") ?? "");
const count = (title) =>
  queried.filter((word) =>
    wordsOf(title).some((other) => word.startsWith(other) || other.startsWith(word)),
  ).length;
const bestHeading = (page) => {
  const number = Search._index.docnames.indexOf(page);
  return Object.entries(Search._index.alltitles)
    .flatMap(([heading, places]) => places.map(([file, id]) => ({ file, id, heading })))
    .filter(({ file }) => file === number)
    .map((place) => ({ ...place, words: count(place.heading) }))
    .reduce((best, place) => (place.words > best.words ? place : best), { words: 0 });
};
const rank = (page) => {
  if (/^docs\/(guides|operate)/.test(page)) return 5;
  return page.startsWith("docs/background") ? -5 : 0;
};

var Scorer = {
  score: (result) => {
    const [page, title, anchor, , score, , kind] = result;
    if (kind === "object") return score;
    const best = bestHeading(page);
    const words = count(title);
    if (!anchor && best.words > words && best.words === queried.length) {
      result.splice(1, 2, `${title} > ${best.heading}`, `#${best.id}`);
    }
    return score + 10 * words + 5 * best.words + rank(page) + (anchor ? 10 : 0);
  },
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
