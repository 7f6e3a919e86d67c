"""The page's script: hover values, linked points, a copy button. Without it nothing is lost but the comfort."""

SCRIPT = """
'use strict';
const SVG = 'http://www.w3.org/2000/svg';
function add(parent, name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  return parent.appendChild(made);
}
function locate(svg, event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
}
function nearest(points, distance) {
  let best = 0;
  points.forEach((point, index) => { if (distance(point) < distance(points[best])) best = index; });
  return best;
}
for (const svg of document.querySelectorAll('svg[data-curves]')) {
  const curves = JSON.parse(svg.dataset.curves), card = svg.closest('figure');
  const box = svg.viewBox.baseVal;
  let marks = [], tip = null;
  const clear = () => { marks.forEach(mark => mark.remove()); marks = []; if (tip) tip.remove(); tip = null; };
  const show = event => {
    clear();
    const at = locate(svg, event);
    const found = curves.map(([name, points]) => [name, points[nearest(points, point => Math.abs(point[0] - at.x))]]);
    const main = found[nearest(found, pair => Math.abs(pair[1][0] - at.x))][1];
    marks.push(add(svg, 'path', {class: 'cursor', d: `M${main[0]} 8V${box.height - 22}`}));
    tip = card.appendChild(Object.assign(document.createElement('div'), {className: 'tip'}));
    const line = text => tip.appendChild(document.createElement('div')).textContent = text;
    line('step ' + main[2]);
    found.forEach(([name, point], index) => {
      if (Math.abs(point[0] - main[0]) > 12) return;
      marks.push(add(svg, 'circle', {class: 'dot s' + index, cx: point[0], cy: point[1], r: 4}));
      line(name + ' ' + point[3]);
    });
    const scale = svg.clientWidth / box.width;
    const middle = 14 + main[0] * scale, right = middle + tip.offsetWidth + 12 > card.clientWidth;
    tip.style.left = (right ? Math.max(4, middle - tip.offsetWidth - 8) : middle + 8) + 'px';
    tip.style.bottom = (14 + box.height * scale * 0.62) + 'px';
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', clear);
}
for (const maps of document.querySelectorAll('[data-points]')) {
  const points = JSON.parse(maps.dataset.points), panels = [...maps.querySelectorAll('svg')];
  const rings = panels.map(svg => add(svg, 'circle', {class: 'ring', r: 7, visibility: 'hidden'}));
  const hide = () => rings.forEach(ring => ring.setAttribute('visibility', 'hidden'));
  panels.forEach((svg, panel) => {
    const show = event => {
      const at = locate(svg, event), x = 2 * panel;
      const point = points[nearest(points, p => (p[x] - at.x) ** 2 + (p[x + 1] - at.y) ** 2)];
      rings.forEach((ring, index) => {
        ring.setAttribute('cx', point[2 * index]);
        ring.setAttribute('cy', point[2 * index + 1]);
        ring.setAttribute('visibility', 'visible');
      });
    };
    svg.addEventListener('pointermove', show);
    svg.addEventListener('pointerdown', show);
    svg.addEventListener('pointerleave', hide);
  });
}
for (const shell of document.querySelectorAll('.shell')) {
  if (!navigator.clipboard) continue;
  const button = document.createElement('button');
  Object.assign(button, {className: 'copy', type: 'button', textContent: 'Copy'});
  shell.append(button);
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(shell.querySelector('code').textContent);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
}
"""
