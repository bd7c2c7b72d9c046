"""Evaluation tasks as data: multiple-choice exams and tasks of lm-evaluation-harness."""
