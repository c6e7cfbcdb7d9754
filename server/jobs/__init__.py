"""The parts of the job executor: forming, handing out, words of pilots, leases, ends; the front door of most is `job_executor`."""
