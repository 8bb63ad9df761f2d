"""Files, jobs and results that outlive the gateway process."""
