"""The style of the page of an adapter."""

STYLE = """
:root { color-scheme: light; --ours: #0072b2; }
body { background: white; color: #1a1a1a; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.3rem; border-bottom: 2px solid #ddd; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; }
.scrolled { overflow-x: auto; }
.scrolled { background: /* a shadow at an end behind which there is more */
  linear-gradient(to right, white 30%, #fff0) left / 3rem 100% local,
  linear-gradient(to left, white 30%, #fff0) right / 3rem 100% local,
  linear-gradient(to right, #0004, #0000) left / .7rem 100%,
  linear-gradient(to left, #0004, #0000) right / .7rem 100%; background-repeat: no-repeat; }
.scrolled td, .scrolled th { overflow-wrap: normal; vertical-align: bottom; }
.scrolled th.number { white-space: normal; }
.figures { display: flex; gap: 1rem; }
.figures div { border: 1px solid #ccc; border-radius: .5rem; padding: .6rem 1rem; flex: 0 1 13rem; min-width: 6rem; }
.figures b { display: block; font-size: 2.6rem; line-height: 1.15; }
.figures div:last-child b { color: var(--ours); }
.figures small { display: block; color: #555; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; }
dt { color: #555; }
dd { margin: 0; }
.legend span { display: inline-block; margin-right: 1.2rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; align-items: end; }
.panels text { font-size: 8px; fill: #555; }
.y { text-anchor: end; }
.x { text-anchor: middle; }
path { fill: none; }
.grid { stroke: #ddd; stroke-width: .6; }
.after { stroke: var(--ours); stroke-width: 2; }
.before { stroke: #777; stroke-width: 1.6; stroke-dasharray: 4 3; }
.at { fill: white; stroke: var(--ours); stroke-width: 2; }
.confusion td { text-align: center; min-width: 1.9rem; padding: .25rem; border: 1px solid #ddd; }
.confusion th { font-weight: normal; white-space: nowrap; }
.confusion th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; overflow: hidden; }
.confusion th.label { position: sticky; left: 0; background: white; }
.confusion th.label { max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }
.right { background: rgb(0 158 115 / calc(.12 + .5 * var(--share))); }
.wrong { background: rgb(213 94 0 / calc(.12 + .5 * var(--share))); }
article { margin-top: 1.6rem; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; }
.views img { display: block; width: 100%; height: auto; }
@media (max-width: 40rem) { th, td { padding: .25rem .3rem; } table { font-size: .8rem; } }
"""
