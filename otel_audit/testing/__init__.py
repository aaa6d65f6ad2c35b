"""A pytest plugin for services that are audited with this package.

The life of one test, in reading order:

1. `plugin`: the fixtures. Each imports what it needs only when a test asks for it.
2. `trail`: open a trail whose times and ids are the same in each run.
3. `events`: find events in it, or report what was logged instead.
4. `collector`: receive what is delivered over OTLP.
5. `coverage`: call every route of an application, or every tool of a server, and look for its event.

Nothing is imported here, since pytest loads this package for every test suite of an environment.
"""
