"""Smaller and cheaper networks from trained ones: functions Recipe -> Recipe."""
