"""Report on a trail to somebody who was not there: what happened, what was recorded, and what proves it.

The life of one report, in reading order:

1. `activity`: find out what happened in a period, and at which times anything was recorded.
2. `report`: add the result of a verification. Its JSON is described in `schema`.
3. `page`: make one HTML file of it, from the elements of `markup`, which escape every text, and the `stylesheet`.
4. `evidence`: write the events and everything needed to check them into one file, with the README of `auditor`.
"""
