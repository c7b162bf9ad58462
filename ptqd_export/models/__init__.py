"""Model families: one adapter a file, all behind `ptqd_export.models.base.Adapter`."""
