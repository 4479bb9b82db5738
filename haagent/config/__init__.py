"""Configuration: the local file and the environment, the dynamic part in the DCS, and how they merge.

`schema` is the one table of keys; `sources` reads YAML and variables; `check` types the values; `load` puts
them together into `types.AgentConfig`; `effective` lays the DCS's `postgresql` section under the local one;
`core.settings` parses the rest of the dynamic configuration.
"""

from haagent.config.dynamic import merge_patch, without_nulls
from haagent.config.effective import EffectivePostgres, effective_postgresql
from haagent.config.load import changed_keys, load, process_environment, reload
from haagent.config.sources import Environment, take_environment
from haagent.config.types import AgentConfig, ConfigErrors

__all__ = [
    "AgentConfig",
    "ConfigErrors",
    "EffectivePostgres",
    "Environment",
    "changed_keys",
    "effective_postgresql",
    "load",
    "merge_patch",
    "process_environment",
    "reload",
    "take_environment",
    "without_nulls",
]
