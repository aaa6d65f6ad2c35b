"""Report on a trail to somebody who was not there: what happened, what covers it, and what proves it.

In reading order: `activity` asks a trail what happened in a period and for what time anything was recorded; `report`
puts the outcome of a verification beside it, and has the JSON; `page` makes one HTML file of that, out of the elements
of `markup`, which escape every text; `stylesheet` is how the page looks.
"""
