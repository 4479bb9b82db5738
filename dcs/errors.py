"""Faults of a DCS, translated at the adapter's edge.

    DcsError
    ├── DcsUnavailable      no answer, or no trustworthy answer, within the deadline
    ├── DcsLoginRefused     the server answered: wrong user, password or certificate
    └── DcsConfigError      the section in the configuration cannot work

Expected outcomes of writes are values (`dcs.api`), not exceptions.
"""


class DcsError(Exception):
    """Base of every fault a DCS adapter raises."""


class DcsUnavailable(DcsError):
    """The store did not answer within the deadline, or its answer cannot be trusted."""


class DcsLoginRefused(DcsError):
    """The store refused our credentials; trying again will not help."""


class DcsConfigError(DcsError):
    """The configuration section of this store is unusable."""
