"""What people read of measurements: tables, statistics, one page."""
