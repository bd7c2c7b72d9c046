"""Workflow: the one room of the library that knows ZenML. Stack set-up, starting pipelines, reading runs, schedules."""
