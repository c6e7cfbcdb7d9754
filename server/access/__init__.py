"""Who may do what, how often, and who did it: tokens, accounts, groups, ownership, quotas, the trail."""
