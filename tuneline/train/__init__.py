"""Training: functions of rows, base model and config that return a checkpoint and a report. Logs to no tracker."""
