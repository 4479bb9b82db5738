"""The member as a service of Consul's catalogue (`consul.register_service`).

It follows what is published under the member key: registered while PostgreSQL runs there in a role that
clients look for, gone from the catalogue when it is stopped. A failure is logged and tried again with the
next change; nothing else rests on it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dcs.consul_http import ConsulHttp
from dcs.consul_options import ConsulOptions
from dcs.errors import DcsError

logger = logging.getLogger(__name__)

#: Role of the member key -> path of the health check.
CHECKED_AT = {"primary": "primary", "replica": "replica", "standby_leader": "standby-leader"}
#: The catalogue forgets a service that fails for so many session TTLs.
FORGOTTEN_TTLS = 10
LONGEST_NAME = 230


class ConsulService:
    """Keeps the service of one member. Not thread safe: the member key has one writer."""

    def __init__(self, http: ConsulHttp, options: ConsulOptions) -> None:
        self._http, self._options = http, options
        self._said: dict[str, Any] | None = None

    def follow(self, name: str, value: str, ttl_s: float, deadline_s: float) -> None:
        """Bring the catalogue in line with the member key `value`; never raises."""
        try:
            member = json.loads(value)
            wanted = service(self._options, name, member, ttl_s) if isinstance(member, dict) else None
            if wanted == self._said:
                return
            if wanted is not None:
                self._http.put("/v1/agent/service/register", {}, wanted, deadline_s)
            elif member.get("state") == "stopped":
                identity = f"{self._options.scope}/{name}"  # the client quotes it
                self._http.put(f"/v1/agent/service/deregister/{identity}", {}, {}, deadline_s)
            self._said = wanted
        except (DcsError, ValueError) as error:
            logger.warning("the service was not registered in Consul: %s", error)


def service(
    options: ConsulOptions, name: str, member: Mapping[str, Any], ttl_s: float
) -> dict[str, Any] | None:
    """What to register for this member; None of one that is no service now."""
    path = CHECKED_AT.get(str(member.get("role")))
    if member.get("state") != "running" or path is None:
        return None
    place, api = urlsplit(str(member.get("conn_url"))), urlsplit(str(member.get("api_url")))
    check: dict[str, Any] = {
        "HTTP": f"{api.scheme}://{api.netloc}/{path}",
        "Interval": options.service_check_interval,
        "DeregisterCriticalServiceAfter": f"{FORGOTTEN_TTLS * ttl_s:g}s",
    }
    if options.service_check_tls_server_name:
        check["TLSServerName"] = options.service_check_tls_server_name
    tags = [*options.service_tags, str(member["role"]).replace("_", "-")]
    return {
        "ID": f"{options.scope}/{name}",
        "Name": service_name(options.scope),
        "Address": place.hostname,
        "Port": place.port or 5432,
        "Check": check,
        "Tags": sorted([*tags, "master"] if path == "primary" else tags),
        "EnableTagOverride": True,
    }


def service_name(scope: str) -> str:
    """A cluster's name as a name of Consul's catalogue (contract 1.6)."""
    plain = re.sub(r"[._ ]", "-", scope.lower())
    return re.sub(r"[^a-z0-9-]", lambda found: f"u{ord(found[0]):04d}", plain)[:LONGEST_NAME]
