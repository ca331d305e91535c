"""The pages of the claims: one for each, with its charts, and one that lists them all."""

from bnkit_claims.report.claim_pages import write_claims as write_claims
