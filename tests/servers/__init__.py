"""Real servers for the tests, each a process on free loopback ports."""

from tests.servers.archive import Record, parse_archive, read_archive
from tests.servers.binaries import COLLECTOR, OWN_VARIABLES, VICTORIALOGS, Binary
from tests.servers.collector import AGENT_CONFIG, Collector, StartCollector
from tests.servers.polling import poll
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.victorialogs import VictoriaLogs

__all__ = [
    "AGENT_CONFIG",
    "COLLECTOR",
    "OWN_VARIABLES",
    "VICTORIALOGS",
    "Binary",
    "Collector",
    "Record",
    "ServerProcess",
    "StartCollector",
    "VictoriaLogs",
    "free_port",
    "parse_archive",
    "poll",
    "read_archive",
]
