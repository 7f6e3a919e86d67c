"""The page's style sheet."""

STYLE = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #1a1d21; --soft: #5a636e; --faint: #e4e2dc; --rule: #d3d0c8;
  --accent: #0072b2; --bad: #c44e00; --warn: #fff3dc;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #b8528f; --s4: #a87900; --s5: #3a96c9;
  --floor: #f4f2ec; --wall: #3d444d;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #0f1317; --card: #171c22; --ink: #e8eaed; --soft: #9aa5b1; --faint: #262d35; --rule: #343d47;
  --accent: #56b4e9; --bad: #f58a4b; --warn: #33291a;
  --s0: #56b4e9; --s1: #f58a4b; --s2: #2cc197; --s3: #e29ac3; --s4: #e6b800; --s5: #8fd0f5;
  --floor: #1e252c; --wall: #aab4bf;
} }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 clamp(16px, 3vw, 32px); }
header { padding-top: clamp(28px, 5vw, 56px); }
h1 { font-size: clamp(1.8rem, 4.2vw, 2.9rem); line-height: 1.1; letter-spacing: -.025em; margin: 0 0 .5rem;
  text-wrap: balance; }
h2 { font-size: 1.45rem; letter-spacing: -.015em; margin: 0 0 .25rem; }
h3 { font-size: .95rem; margin: 1.5rem 0 .6rem; color: var(--soft); font-weight: 600; }
h3::first-letter, .card h4::first-letter { text-transform: uppercase; }
h4 { font-size: .95rem; margin: 0; }
p { margin: .25rem 0; max-width: 74ch; }
a { color: var(--accent); text-underline-offset: 3px; }
small { color: var(--soft); font-weight: 400; }
.summary { font-size: clamp(1.02rem, 1.6vw, 1.2rem); color: var(--soft); max-width: 68ch; text-wrap: pretty; }
section { padding-top: 2.75rem; } section:last-child { padding-bottom: 4rem; }
.read { color: var(--soft); margin-bottom: 1rem; text-wrap: pretty; }
.note { border-left: 3px solid var(--accent); padding-left: .8rem; margin: .6rem 0 1rem; }
.warning { background: var(--warn); border-left: 3px solid var(--s4); border-radius: 4px; padding: .6rem .9rem; }
.missing { color: var(--soft); font-style: italic; font-size: .9em; font-weight: 400; letter-spacing: 0; }
section > .missing { border: 1px dashed var(--rule); border-radius: 8px; padding: 1rem; max-width: none; }

.tiles { display: grid; gap: 12px; margin: 1.75rem 0 1rem; grid-template-columns: 1.55fr 1fr 1fr 1fr 1fr; }
.tile { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 14px 16px; }
.tile h2 { font-size: .8rem; font-weight: 600; color: var(--soft); letter-spacing: 0; }
.tile p { font-size: .8rem; color: var(--soft); line-height: 1.4; margin: .15rem 0 0; }
.tile .big { font-size: clamp(1.5rem, 2.5vw, 2.1rem); font-weight: 700; letter-spacing: -.03em; line-height: 1.15;
  color: var(--ink); white-space: nowrap; margin-bottom: .3rem; }
.tile .big .missing { font-size: 1rem; font-weight: 400; }
.tile:first-child .big { font-size: clamp(2rem, 3.8vw, 3rem); color: var(--accent); line-height: 1; }
.gauge { width: 100%; margin: .35rem 0 .1rem; overflow: visible; display: block; }
.gauge .track { fill: var(--faint); } .gauge .fill { fill: var(--accent); opacity: .45; }
.gauge .span { fill: var(--accent); } .gauge .notch { stroke: var(--bad); stroke-width: 2.5; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; font-size: .88rem; border-top: 1px solid var(--faint);
  padding-top: .8rem; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }

figure { margin: 0; }
.card { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 14px; min-width: 0; }
.card figcaption p { font-size: .82rem; color: var(--soft); margin: 0; line-height: 1.4; }
.card svg { display: block; width: 100%; height: auto; }
.chart svg { overflow: visible; }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.chart { position: relative; display: flex; flex-direction: column; justify-content: space-between; gap: 8px; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .82rem; color: var(--soft); max-width: none; }
.legend b { color: var(--ink); }
.key { display: inline-block; width: 12px; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: 5px; }
.grid { stroke: var(--faint); fill: none; } .tick { fill: var(--soft); font-size: 10px; }
.reference { stroke: var(--soft); stroke-dasharray: 3 3; fill: none; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.line.lone { stroke-width: 6; }
.cursor { stroke: var(--soft); stroke-width: 1; } .dot { stroke: var(--card); stroke-width: 1.5; }
.tip { position: absolute; pointer-events: none; background: var(--ink); color: var(--paper); font-size: .76rem;
  line-height: 1.45; border-radius: 6px; padding: 4px 8px; white-space: nowrap; z-index: 2; }
.tip div:first-child { opacity: .7; }
""" + "".join(
    f".line.s{i} {{ stroke: var(--s{i % 6}); }} .key.s{i} {{ background: var(--s{i % 6}); }} "
    f".dot.s{i} {{ fill: var(--s{i % 6}); }}\n"
    for i in range(12)
) + """
.maps { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(165px, 46%), 1fr)); }
.map { display: flex; flex-direction: column; gap: 10px; } .map svg { cursor: crosshair; border-radius: 4px; }
.map figcaption { margin-top: auto; }
.dots { stroke-width: 5.2; stroke-linecap: round; fill: none; opacity: .9; }
.ring { fill: none; stroke: var(--ink); stroke-width: 2; pointer-events: none; }
.wall { stroke: var(--wall); fill: none; stroke-linecap: butt; }
.map .wall { stroke: #14181c; }

.storyboard { margin-bottom: 12px; }
.strip { display: flex; gap: 8px; overflow-x: auto; padding-top: 8px; font-size: .78rem; color: var(--soft); }
.step { display: grid; grid-template-rows: 1.3rem auto auto 1.9rem; gap: 5px; flex: 1 0 58px; max-width: 112px;
  text-align: center; }
.step.heads { flex: 0 0 auto; text-align: left; position: sticky; left: 0; background: var(--card);
  padding-right: 6px; grid-template-rows: 1.3rem 1fr 1fr 1.9rem; z-index: 1; }
.step.heads span { align-self: center; }
.step img { width: 100%; height: auto; display: block; border-radius: 6px; image-rendering: pixelated; }
.real { outline: 1px solid var(--rule); outline-offset: -1px; }
.dream { outline: 2px solid var(--accent); outline-offset: -2px; }
.step span { display: block; color: var(--soft); } .step data { color: var(--ink); }
.bar { display: block; height: 5px; border-radius: 3px; background: var(--accent); min-width: 1px; margin-top: 2px; }

.rooms { display: grid; gap: 12px 10px; margin-top: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.room svg { display: block; width: 100%; height: auto; background: var(--floor); border-radius: 6px; }
.room figcaption { font-size: .72rem; color: var(--soft); display: flex; justify-content: space-between; gap: 4px;
  padding: 2px 2px 0; white-space: nowrap; }
.room span { overflow: hidden; text-overflow: ellipsis; }
.room b { color: var(--ink); font-weight: 600; white-space: nowrap; } .room.failed b { color: var(--bad); }
.room.failed svg { box-shadow: 0 0 0 2px var(--bad); }
.faint { opacity: .3; }
.path, .beads { fill: none; stroke: var(--s0); stroke-width: 1.5; stroke-linejoin: round; stroke-linecap: round; }
.beads { stroke-width: 3; }
.failed .path, .failed .beads { stroke: var(--bad); } .failed .path { stroke-dasharray: 3 2.4; }
.start { fill: var(--card); stroke: var(--ink); stroke-width: 1.5; }
.goal { stroke: var(--ink); stroke-width: 2.2; fill: none; stroke-linecap: round; }
.halo { fill: var(--s2); opacity: .25; }
.mark { display: inline-block; width: 14px; height: 11px; margin-right: 5px; vertical-align: -1px; }
.mark.start { width: 11px; border: 2px solid var(--ink); border-radius: 50%; background: var(--card); }
.mark.goal { width: 11px; background: linear-gradient(45deg, transparent 43%, var(--ink) 43% 57%, transparent 57%),
  linear-gradient(-45deg, transparent 43%, var(--ink) 43% 57%, transparent 57%); }
.mark.reached { border-bottom: 3px solid var(--s0); vertical-align: 3px; }
.mark.failed { border-bottom: 3px dashed var(--bad); vertical-align: 3px; }

.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--faint); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; padding: .8rem 1rem .3rem; color: var(--soft); font-size: .82rem; }
th, td { text-align: right; padding: .55rem 1rem; vertical-align: top; }
th:first-child { text-align: left; font-weight: 600; min-width: 11rem; } th small, td small { display: block; }
td small { font-size: .78rem; }
thead th { font-size: .78rem; color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--faint); } td { white-space: nowrap; }
.interval { display: block; font-size: .78rem; color: var(--soft); font-weight: 400; }
#timings td:last-child, #timings th:last-child { width: 55%; text-align: left; vertical-align: middle; }
#timings .bar { height: 9px; margin: 0; }
.shell { position: relative; } pre { background: #14191f; color: #e8eaed; border-radius: 12px; padding: 16px 18px;
  overflow-x: auto; font: .86rem/1.65 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  margin: 0 0 12px; }
.copy { position: absolute; top: 10px; right: 10px; font: inherit; font-size: .76rem; color: #e8eaed; cursor: pointer;
  background: #2b333d; border: 0; border-radius: 6px; padding: 3px 10px; }
.boxes { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); }
.pairs { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 14px 16px; }
.pairs h3 { margin: 0 0 .4rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem 1rem; margin: 0; font-size: .86rem; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 900px) { .tiles { grid-template-columns: 1fr 1fr; } .tile:first-child { grid-column: 1 / -1; } }
@media (max-width: 480px) {
  .maps { grid-template-columns: 1fr 1fr; } .map:first-child { grid-column: 1 / -1; flex-direction: row; }
  .map:first-child svg { width: 45%; } .map:first-child figcaption { margin: auto 0; }
  .rooms { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); }
  th, td { padding: .5rem .7rem; } th:first-child { min-width: 8rem; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --faint: #ddd; --rule: #bbb; --accent: #0072b2;
    --bad: #c44e00; --warn: #fff3dc; --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #b8528f; --s4: #a87900;
    --s5: #3a96c9; --floor: #f4f2ec; --wall: #3d444d; }
  body { font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  header, main { max-width: none; padding: 0; } nav, .copy, .tip { display: none; }
  .card, .tile, .room, tr, .pairs, pre { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .tiles { grid-template-columns: 1.5fr 1fr 1fr 1fr 1fr; } .tile:first-child { grid-column: auto; }
  .charts, .maps { grid-template-columns: 1fr 1fr 1fr; } .rooms { grid-template-columns: repeat(8, 1fr); }
  .strip { overflow: visible; } .step { flex: 1 1 0; min-width: 0; } .step.heads { flex: 0 0 auto; }
  .scroll { overflow: visible; } table { font-size: 8.5pt; } th, td { padding: .3rem .4rem; }
  pre { white-space: pre-wrap; background: #f4f2ec; color: #000; }
}
"""
