"""How the page looks: one style sheet, for light and dark, from a telephone to a wide screen."""

from __future__ import annotations

STYLE = """
:root {
  --ground: #fbfbfa; --card: #ffffff; --ink: #1a1f27; --soft: #5b6472; --line: #e2e4e8;
  --good: #00684b; --good-ground: #e2f4ed; --bad: #a33c00; --bad-ground: #fdece2; --plain-ground: #eef0f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12151a; --card: #1a1e25; --ink: #e8eaee; --soft: #a3abb8; --line: #313742;
    --good: #5fd0a5; --good-ground: #12352a; --bad: #ff9d66; --bad-ground: #42210f; --plain-ground: #2a303a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 24px; }
footer { max-width: 1120px; margin: 0 auto; padding: 8px 24px 48px; color: var(--soft); font-size: 14px; }
.kicker { margin: 0 0 8px; color: var(--soft); font-size: 15px; overflow-wrap: anywhere; }
h1 {
  margin: 0 0 16px; max-width: 28em; font-size: clamp(24px, 3.6vw, 36px); line-height: 1.2;
  letter-spacing: -0.015em; text-wrap: balance; overflow-wrap: anywhere;
}
h2 { margin: 0 0 12px; font-size: 20px; letter-spacing: -0.01em; }
p { max-width: 46em; margin: 0 0 12px; }
.findings { margin: 0; padding-left: 1.2em; max-width: 54em; overflow-wrap: anywhere; }
.findings li { margin: 2px 0; }
section { margin-top: 44px; }
.note { color: var(--soft); font-size: 14px; margin-top: 12px; overflow-wrap: anywhere; }
.scroll {
  overflow-x: auto; border: 1px solid var(--line); border-radius: 10px;
  background: linear-gradient(to left, var(--card) 40%, transparent) right / 48px 100% no-repeat local,
    linear-gradient(to left, rgba(128, 136, 146, 0.45), transparent) right / 14px 100% no-repeat scroll,
    var(--card);
}
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 10px 14px; text-align: right; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: 14px; vertical-align: bottom; }
.results th:first-child {
  text-align: left; position: sticky; left: 0; background: var(--card); min-width: 7.5em;
}
.results td { white-space: nowrap; }
.results tbody th { font-weight: 600; overflow-wrap: anywhere; }
.results th:last-child, .results .difference { text-align: left; padding-left: 24px; }
.mark {
  display: inline-block; margin-left: 6px; padding: 0 8px; border-radius: 9px;
  font-size: 13px; background: var(--plain-ground); color: var(--ink);
}
.mark.better { background: var(--good-ground); color: var(--good); }
.mark.worse { background: var(--bad-ground); color: var(--bad); }
.facts th, .facts td { text-align: left; font-size: 14px; padding: 7px 14px; }
.facts th { font-weight: 500; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; min-width: 8em; }
.facts td:nth-child(3) { color: var(--soft); min-width: 16em; }
.facts tr:first-child > * { border-top: 0; }
.facts pre { margin: 0; padding: 0; border: 0; background: none; }
.chart {
  padding: 12px 10px; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
  overflow: hidden;
}
.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr));
  gap: 24px 20px;
}
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; justify-content: space-between; }
figcaption { margin-bottom: 8px; font-size: 14px; color: var(--soft); }
figcaption b { display: block; font-size: 16px; font-weight: 600; color: var(--ink); }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 16px; padding: 0; list-style: none; }
.key i {
  display: inline-block; width: 18px; height: 4px; margin-right: 8px; border-radius: 2px;
  vertical-align: 4px;
}
.picture { background: #ffffff; }
.picture img { display: block; width: 100%; min-width: 720px; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0; }
.tiles div {
  padding: 12px 16px; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
}
dt { color: var(--soft); font-size: 14px; }
dd { margin: 2px 0 0; font-size: 26px; font-weight: 600; font-variant-numeric: tabular-nums; }
dd small { font-size: 16px; font-weight: 400; color: var(--soft); }
pre {
  margin: 0 0 12px; padding: 12px 16px; overflow-x: auto; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); font-size: 14px; line-height: 1.45;
}
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin: 10px 0; }
summary { cursor: pointer; padding: 4px 0 8px; font-weight: 500; }
.chart .infolayer text, .chart .xtick text, .chart .ytick text { fill: var(--soft) !important; }
.chart .ytick text { fill: var(--ink) !important; }
.chart .hoverlayer .legend .bg { fill: var(--card) !important; stroke: var(--line) !important; }
.chart .hoverlayer .legend text { fill: var(--ink) !important; }
@media (max-width: 960px) {
  .mark { display: block; width: fit-content; margin: 4px 0 0; }
}
@media (max-width: 600px) {
  main { padding: 24px 16px; }
  footer { padding: 8px 16px 32px; }
  th, td { padding: 8px 9px; }
  .results th:first-child { min-width: 5.5em; }
}
@media print { details { display: none; } section { break-inside: avoid; } }
"""
