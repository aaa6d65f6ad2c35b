"""A pytest plugin for services that are audited with this package.

`plugin` has the fixtures, and imports what they need only when a test asks for one. In reading order: `trail` opens a
trail whose times and ids are the same in each run; `events` finds events in it, or says what was logged instead;
`collector` takes what is delivered over OTLP; `coverage` calls every route of an application, or every tool of a
server, and looks for the event.

Nothing is imported here: pytest loads this package for every test suite of an environment.
"""
