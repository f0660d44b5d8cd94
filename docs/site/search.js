// Searches the sections of all pages, which sections.js contains; shows a link to each page.

const wordsOf = (text) => text.toLowerCase().match(/\w{3,}/g) ?? [];

// How many words of the query the text contains, or words that continue them, such as "hangs".
const count = (words, text) => {
  const others = wordsOf(text);
  return words.filter((word) => others.some((other) => other.startsWith(word))).length;
};

// Guides answer more questions than reference pages, and these more than the background does.
const rank = ({ url }) =>
  /^(guides|operate)/.test(url) ? 5 : url.startsWith("background") ? -5 : 0;

const search = (words) => {
  const best = new Map();
  for (const section of sections) {
    const { page, heading, text } = section;
    const hits = count(words, `${page} ${heading} ${text}`);
    const score = 5 * hits + 10 * count(words, page) + 10 * count(words, heading) + rank(section);
    if (hits && score > (best.get(page)?.score ?? -Infinity)) best.set(page, { ...section, score });
  }
  return [...best.values()].sort((one, other) => other.score - one.score);
};

// The text around its first word of the query.
const excerpt = (words, text) => {
  const found = words.map((word) => text.toLowerCase().indexOf(word)).filter((at) => at >= 0);
  const start = Math.max(0, Math.min(...found, text.length) - 60);
  return text.slice(start, start + 200);
};

const query = new URLSearchParams(location.search).get("q") ?? "";
const words = wordsOf(query);
const results = search(words);
document.querySelector("input[name=q]").value = query;
document.querySelector("h1").textContent = `${results.length} pages contain ${query}`;
for (const { url, page, heading, text } of results) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = url;
  link.textContent = heading === page ? page : `${page} > ${heading}`;
  const line = document.createElement("p");
  line.textContent = excerpt(words, text);
  item.append(link, line);
  document.getElementById("results").append(item);
}
