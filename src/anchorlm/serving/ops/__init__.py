"""What an operator needs: keys, limits, the audit log, metrics, the self-test."""
