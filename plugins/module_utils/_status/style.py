# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a page looks: by day, by night, on paper, on a telephone. PRIVATE to the collection. Pure."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--back:#f4f6f9;--fore:#1b2330;--dim:#556072;--line:#d5dbe4;--panel:#fff;--live:#2563c9;
--out:#96590a;--wrong:#b3261e;--well:#17743b}
@media(prefers-color-scheme:dark){:root{--back:#11151b;--fore:#e6eaf0;--dim:#a3adbb;--line:#323a47;--panel:#191f28;
--live:#7aa8ff;--out:#e5a84b;--wrong:#ff8a80;--well:#62cb8c}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--fore);font:15px/1.45 system-ui,"Segoe UI","DejaVu Sans",sans-serif}
header,nav,main{max-width:1240px;margin:0 auto;padding:0 20px}
h1{font-size:24px;margin:24px 0 0}h2{font-size:18px;margin:0 0 10px}h3{font-size:15px;margin:20px 0 4px}
header p,small,caption,figcaption{color:var(--dim)}header p{margin:2px 0 16px;overflow-wrap:anywhere}
small{font-size:13px;font-weight:400}
.cards{list-style:none;margin:0;padding:0;display:grid;gap:12px}
.cards{grid-template-columns:repeat(auto-fit,minmax(180px,1fr))}
.cards li,section{background:var(--panel);border:1px solid var(--line);border-radius:8px}
.cards li{padding:10px 14px;border-left:5px solid var(--well);overflow-wrap:anywhere}
.cards .wrong{border-left-color:var(--wrong)}
.cards strong{display:block;font-size:24px;line-height:1.2;font-variant-numeric:tabular-nums}
.cards small{display:block}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:16px 0 0;padding:0}a{color:var(--live)}
section{margin:16px 0;padding:16px 18px}figure{margin:0}figcaption{font-size:13px;margin-top:8px}
.scroll{overflow-x:auto}
.scroll:focus-visible,summary:focus-visible,a:focus-visible{outline:3px solid var(--live);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;font-size:13px;padding:2px 8px 4px}
th,td{text-align:left;vertical-align:top;padding:4px 8px;border-bottom:1px solid var(--line)}
th,td{overflow-wrap:anywhere;min-width:72px}
tbody th{font-weight:600;min-width:130px}
thead th{font-weight:500;color:var(--dim);font-size:13px;white-space:nowrap}
td:last-child{min-width:90px}.number{text-align:right}summary{cursor:pointer;padding:4px 0}
#problems td:last-child{min-width:280px}h3{overflow-wrap:anywhere}
.topology{display:block;width:100%;min-width:900px;height:auto;font-size:11px}
.topology text{fill:var(--fore)}.topology .name{font-size:13px;font-weight:600}
.topology .small,.topology .heading{fill:var(--dim)}
.topology .heading{font-size:12px}.topology .end{text-anchor:end}
.box rect{fill:var(--panel);stroke:var(--line)}.active rect{stroke:var(--live);stroke-width:2}
.standby rect{stroke-dasharray:4 3}
.draining rect,.out rect,.one_left rect,.reduced rect{stroke:var(--out)}
.full rect,.no_server rect,.differs rect,.failed rect,.unreachable rect{stroke:var(--wrong);stroke-width:2}
.edge{fill:none;stroke:var(--live);stroke-opacity:.4}
.edge.draining,.edge.out{stroke:var(--out);stroke-dasharray:5 4;stroke-opacity:.9}
.edge.full{stroke:var(--wrong)}
@media print{:root{color-scheme:light;--back:#fff;--panel:#fff;--fore:#000;--dim:#444;--line:#bbb;--live:#2563c9;
--out:#96590a;--wrong:#b3261e;--well:#17743b}body{font-size:11px}nav{display:none}
.scroll{overflow:visible}.topology{min-width:0}section{border:0;padding:0}tr,figure,.cards li{break-inside:avoid}}
"""
