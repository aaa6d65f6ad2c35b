"""Real servers for the tests, each a process on free loopback ports."""

from tests.servers.archive import Record, parse_archive, read_archive
from tests.servers.binaries import COLLECTOR, OWN_VARIABLES, VICTORIALOGS, VMALERT_TOOL, Binary
from tests.servers.collector import AGENT_CONFIG, Collector, StartCollector
from tests.servers.polling import poll
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.victorialogs import VictoriaLogs
from tests.servers.victoriametrics import VictoriaMetrics

__all__ = [
    "AGENT_CONFIG",
    "COLLECTOR",
    "OWN_VARIABLES",
    "VICTORIALOGS",
    "VMALERT_TOOL",
    "Binary",
    "Collector",
    "Record",
    "ServerProcess",
    "StartCollector",
    "VictoriaLogs",
    "VictoriaMetrics",
    "free_port",
    "parse_archive",
    "poll",
    "read_archive",
]
