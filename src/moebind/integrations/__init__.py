"""moebind in programs of others: the command-line tool llm, and lm-evaluation-harness."""
