// Turns untrusted text into nodes: http and https addresses become links, the rest remains text.

const LINK = /\bhttps?:\/\/[^\s<>"'`\\^{|}\u0000-\u001f\u202a-\u202e\u2066-\u2069]{1,2000}/g;
// The punctuation after an address is not part of the address.
const END = /[.,:;!?)\]*_~]+$/;
// Characters that change the direction of text, which can disguise an address.
const DIRECTION_MARKS = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

export function shown(text) {
  return text.replace(DIRECTION_MARKS, (mark) => `\\u${mark.codePointAt(0).toString(16)}`);
}

// A link to an http or https address; for any other address, only the label.
export function link(address, label = document.createTextNode(shown(address))) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return label;
  }
  if (!["http:", "https:"].includes(url.protocol)) return label;
  const anchor = document.createElement("a");
  anchor.href = url.href;
  anchor.rel = "noopener noreferrer";
  anchor.target = "_blank";
  anchor.title = url.href;
  anchor.append(label);
  return anchor;
}

// The addresses in a text, with their positions.
export function addressesIn(text) {
  return [...text.matchAll(LINK)].map(({ 0: found, index }) => {
    const address = withoutEnd(found);
    return { address, from: index, to: index + address.length };
  });
}

// The nodes of a text with its links. For a part of a text, `addresses` are the addresses of the
// whole text, and `offset` is the start of the part.
export function linked(text, addresses = addressesIn(text), offset = 0) {
  const nodes = [];
  const node = (from, to) => document.createTextNode(shown(text.slice(from, to)));
  let start = 0;
  for (const { address, from, to } of addresses) {
    const [first, end] = [from, to].map((at) =>
      Math.max(start, Math.min(at - offset, text.length)),
    );
    if (first === end) continue;
    nodes.push(node(start, first), link(address, node(first, end)));
    start = end;
  }
  nodes.push(node(start, text.length));
  return nodes;
}

function withoutEnd(address) {
  const cut = address.replace(END, "");
  // A bracket can belong to an address, as in https://en.wikipedia.org/wiki/Flask_(disambiguation)
  return address[cut.length] === ")" && cut.includes("(") ? `${cut})` : cut;
}
