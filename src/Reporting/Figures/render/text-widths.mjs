// Advance widths of Liberation Sans 2.1 in 1/2048 em, read from the fonts' own cmap and hmtx tables. Arial has the same
// widths by design. Without a canvas Vega guesses 0.8 em times the number of characters, and labels overlap or float.

const unitsPerEm = 2048;

// [advance width, the characters that have it]
const regular = [
  [384, "′"],
  [391, "'"],
  [455, "ijl‘’"],
  [532, "|"],
  [569, " !,./:;I[\\]ft· í"],
  [682, "()-`r²³¹“”"],
  [684, "{}"],
  [725, "″"],
  [727, "\""],
  [797, "*"],
  [819, "°"],
  [961, "^"],
  [1024, "Jcksvxyzç"],
  [1124, "±≤≥≈√"],
  [1139, "#$0123456789?L_abdeghnopqu–äöüéèêáàâóúñå"],
  [1180, "µμ"],
  [1196, "+<=>~×−"],
  [1251, "FTZßø"],
  [1264, "σ"],
  [1366, "&ABEKPSVXYÄÉÅ"],
  [1368, "Δ"],
  [1460, "∞"],
  [1479, "CDHNRUwÜ"],
  [1593, "GOQÖØ"],
  [1706, "Mm"],
  [1821, "%æ"],
  [1933, "W"],
  [2048, "—…→"],
  [2079, "@"],
];

const bold = [
  [487, "'"],
  [491, "′"],
  [569, " ,./I\\ijl·‘’ í"],
  [573, "|"],
  [682, "!()-:;[]`ft²³¹"],
  [797, "*r{}"],
  [819, "°"],
  [971, "\""],
  [981, "″"],
  [1024, "z“”"],
  [1124, "±≤≥≈√"],
  [1139, "#$0123456789J_aceksvxy–äéèêáàâçå"],
  [1180, "µ"],
  [1196, "+<=>^~×−"],
  [1251, "?FLTZbdghnopquöüßóúñø"],
  [1253, "μ"],
  [1366, "EPSVXYÉ"],
  [1401, "σ"],
  [1460, "∞"],
  [1472, "Δ"],
  [1479, "&ABCDHKNRUÄÜÅ"],
  [1593, "GOQwÖØ"],
  [1706, "M"],
  [1821, "%mæ"],
  [1933, "W"],
  [1997, "@"],
  [2048, "—…→"],
];

function index(groups) {
  const widths = new Map();
  for (const [width, characters] of groups) {
    for (const character of characters) {
      widths.set(character, width);
    }
  }
  return widths;
}

const regularWidths = index(regular);
const boldWidths = index(bold);

// A character that is not in the table is as wide as a digit.
const usual = regularWidths.get("0");

/** Width of a line of text in pixels. */
export function textWidth(text, fontSize, isBold) {
  const widths = isBold ? boldWidths : regularWidths;
  let total = 0;
  for (const character of text) {
    total += widths.get(character) ?? usual;
  }
  return (total * fontSize) / unitsPerEm;
}
