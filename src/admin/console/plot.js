// Small line plots in SVG. Everything is set through the DOM, so no text can become markup.

const SVG = 'http://www.w3.org/2000/svg';
const WIDTH = 400;
const HEIGHT = 104;
const TOP = 12;
const BOTTOM = 14;
const SHORTEST = 2 * 60 * 1000;
const LONGEST = 30 * 60 * 1000;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The next round number above: 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** A number in few characters. */
export function short(value) {
  if (value >= 10000) return `${Math.round(value / 1000)}k`;
  if (value >= 100) return String(Math.round(value));
  if (value >= 10) return value.toFixed(1).replace(/\.0$/, '');
  return value.toFixed(2).replace(/\.?0+$/, '');
}

function path(points, x, y) {
  let line = '';
  let isDrawing = false;
  for (const [at, value] of points) {
    if (value === null) {
      isDrawing = false;
      continue;
    }
    // A point between two gaps would be invisible as a line without length.
    line += isDrawing ? `L${x(at)} ${y(value)}` : `M${x(at)} ${y(value)}h2`;
    isDrawing = true;
  }
  return line;
}

/**
 * Draws series into a container. `series`: [{ name, points: [[unix ms, number or null]] }].
 */
export function draw(container, series, { empty, label }) {
  const all = series.flatMap((one) => one.points).filter(([, value]) => value !== null);
  const end = Math.max(Date.now(), ...all.map(([at]) => at));
  // All that there is, at least two minutes and at most half an hour.
  const first = Math.min(end - SHORTEST, ...series.flatMap((one) => one.points).map(([at]) => at));
  const begin = Math.max(end - LONGEST, first);
  const top = ceiling(Math.max(0, ...all.map(([, value]) => value)));
  const x = (at) => Math.round(((Math.max(at, begin) - begin) / (end - begin)) * WIDTH * 10) / 10;
  const y = (value) => Math.round((HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM)) * 10) / 10;
  const svg = element('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
  for (const share of [0, 0.5, 1]) {
    svg.append(element('path', { d: `M0 ${y(top * share)}H${WIDTH}`, class: 'grid' }));
  }
  series.forEach((one, index) => {
    svg.append(element('path', { d: path(one.points, x, y), class: `s${(index % 5) + 1}` }));
  });
  const legend = document.createElement('ul');
  legend.className = 'legend';
  series.forEach((one, index) => {
    const last = one.points.findLast(([, value]) => value !== null);
    const item = document.createElement('li');
    item.className = `s${(index % 5) + 1}`;
    const text = document.createElement('span');
    text.textContent = last ? `${one.name} ${short(last[1])}` : one.name;
    item.append(text);
    legend.append(item);
  });
  const scale = document.createElement('p');
  scale.className = 'scale';
  scale.textContent = all.length ? short(top) : empty;
  container.replaceChildren(scale, svg, legend);
}
