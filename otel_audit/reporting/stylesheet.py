"""How a report looks: light, dark and on paper, with the fonts of the reader's system."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import Final

__all__ = ["POLICY", "STYLESHEET"]

STYLESHEET: Final = """
:root {
  color-scheme: light dark;
  --ground: #fff; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de; --shade: #f6f8fa; --link: #0550ae;
  --success: #2da44e; --failure: #d4a72c; --denied: #bc4c00; --error: #cf222e; --cancelled: #8250df; --unknown: #8c959f;
  --broken: #a40e26; --proven: #116329; --consistent: #7d4e00;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #0d1117; --text: #e6edf3; --quiet: #9da7b3; --line: #3d444d; --shade: #161b22; --link: #79c0ff;
    --success: #3fb950; --failure: #d29922; --denied: #f0883e; --error: #f85149; --cancelled: #a371f7;
    --unknown: #6e7681;
    --broken: #ff9492; --proven: #56d364; --consistent: #e3b341;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 86rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--link); }
code, pre { font: .875em/1.45 ui-monospace, monospace; }
code, td, dd { overflow-wrap: anywhere; unicode-bidi: isolate; }
pre { padding: .75rem 1rem; background: var(--shade); border: 1px solid var(--line); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.skip { position: absolute; left: -100vw; }
.skip:focus { position: static; }
.quiet { color: var(--quiet); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.about { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }
.about dt { color: var(--quiet); }
.about dd { margin: 0; }
.verdict { margin: 1.25rem 0; padding: .75rem 1rem; border: 1px solid var(--line); border-left-width: 6px;
  border-radius: 6px; background: var(--shade); }
.verdict p { max-width: none; margin: 0; overflow-wrap: anywhere; }
.broken { border-color: var(--broken); }
.proven { border-color: var(--proven); }
.consistent { border-color: var(--consistent); }
.finding { color: var(--broken); font-weight: 600; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.numbers div { display: flex; flex-direction: column-reverse; padding: .6rem .8rem; border: 1px solid var(--line);
  border-radius: 6px; }
.numbers dt { color: var(--quiet); font-size: .875rem; }
.numbers dd { margin: 0; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .75rem 0 0; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .3rem 1.25rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; overflow-wrap: anywhere; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.time, .id { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.id, tbody th.id { font-family: ui-monospace, monospace; font-size: .8125rem; }
td.text, th.text { min-width: 8rem; }
.bar { display: block; width: 12rem; height: .8rem; margin-top: .25rem; }
rect.success { fill: var(--success); } rect.failure { fill: var(--failure); } rect.denied { fill: var(--denied); }
rect.error { fill: var(--error); } rect.cancelled { fill: var(--cancelled); } rect.unknown { fill: var(--unknown); }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav, .skip { display: none; }
  .scroll { overflow: visible; }
  h2, h3, caption { break-after: avoid; }
  tr, .verdict, .numbers div { break-inside: avoid; }
  thead { display: table-header-group; }
  .id, .time { white-space: normal; }
  .bar { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

# Nothing may be loaded, run or sent. Source: Content Security Policy Level 3, section 2.3.1, hash-source.
POLICY: Final = (
    "default-src 'none'; "
    f"style-src 'sha256-{b64encode(sha256(STYLESHEET.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'"
)
