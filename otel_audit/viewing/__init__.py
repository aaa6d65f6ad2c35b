"""Look at a trail in a browser: a page that this machine serves to itself.

In reading order: `trail` reads a trail and verifies it in the background, and goes on with what is written meanwhile;
`standing` says what the verification shows of one line; `indexed` gives the lines of a store to whoever makes a proof;
`answers` has what the page is told, as JSON; `server` lets in nobody but whoever has the URL. `page/` holds the page
itself, which loads nothing from elsewhere.
"""
