"""Reports: what one run did, and how several compare, each as one HTML file that needs nothing else."""

from fastqat.train.report.writer import comparison_lines, comparison_table, pick_pictures, write_comparison, write_report

__all__ = ["comparison_lines", "comparison_table", "pick_pictures", "write_comparison", "write_report"]
