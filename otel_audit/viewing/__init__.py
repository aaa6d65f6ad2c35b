"""Look at a trail in a browser, on a page that this machine serves to itself.

In reading order:

1. `trail`: read and verify a trail in the background, and follow it as it grows.
2. `standing`: say how far the verification proves one line.
3. `indexed`: give the lines of a store that was read, to make a proof of one of them.
4. `answers`: answer the questions of the page as JSON.
5. `server`: serve the page, only to requests that know its URL.

`page/` holds the page itself, which loads nothing from elsewhere.
"""
