"""Rules of `haagent.core.decide`, one file per situation."""
