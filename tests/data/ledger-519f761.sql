BEGIN TRANSACTION;
CREATE TABLE alerts (
	sequence INTEGER NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	cause TEXT NOT NULL, 
	message TEXT NOT NULL, 
	first TEXT NOT NULL, 
	last TEXT NOT NULL, 
	details TEXT, 
	count INTEGER NOT NULL, 
	delivered BOOLEAN NOT NULL, 
	PRIMARY KEY (sequence)
);
INSERT INTO "alerts" VALUES(1,'customer_churn_model','drift of total_orders_30d','it''s drifted: 31 % more','2026-11-20T12:00:00+00:00','2026-11-20T13:00:00+00:00','{"psi": 0.3}',2,1);
INSERT INTO "alerts" VALUES(2,'orders','source is silent','silent','2026-11-20T12:00:00+00:00','2026-11-20T12:00:00+00:00',NULL,1,0);
CREATE TABLE decisions (
	sequence INTEGER NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	version TEXT NOT NULL, 
	as_of TEXT NOT NULL, 
	verdict TEXT NOT NULL, 
	action TEXT NOT NULL, 
	rule TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	cause TEXT NOT NULL, 
	inputs TEXT NOT NULL, 
	figures TEXT NOT NULL, 
	counted TEXT, 
	PRIMARY KEY (sequence)
);
INSERT INTO "decisions" VALUES(1,'customer_churn_model','1','2026-11-20T12:00:00+00:00','good','nothing','rule','reason','cause','{"n": 0}','{"psi": 0.0}',NULL);
INSERT INTO "decisions" VALUES(2,'customer_churn_model','1','2026-11-20T13:00:00+00:00','bad','retrain','rule','reason','cause','{"n": 1}','{"psi": 0.1}','{}');
INSERT INTO "decisions" VALUES(3,'customer_churn_model','1','2026-11-20T14:00:00+00:00','good','nothing','rule','reason','cause','{"n": 2}','{"psi": 0.2}','{}');
INSERT INTO "decisions" VALUES(4,'customer_churn_model','1','2026-11-20T15:00:00+00:00','bad','retrain','rule','reason','cause','{"n": 3}','{"psi": 0.3}','{}');
CREATE TABLE ledger (
	model VARCHAR(64) NOT NULL, 
	sequence INTEGER NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	percent INTEGER NOT NULL, 
	"from" VARCHAR(16), 
	"to" VARCHAR(16), 
	who TEXT NOT NULL, 
	why TEXT NOT NULL, 
	evidence TEXT, 
	time VARCHAR(32) NOT NULL, 
	applied_at VARCHAR(32), 
	PRIMARY KEY (model, sequence)
);
INSERT INTO "ledger" VALUES('customer_churn_model',1,'production',100,NULL,'1','shell:ann','reason 1',NULL,'2026-11-21T12:00:00+00:00','2026-11-21T12:00:02+00:00');
INSERT INTO "ledger" VALUES('customer_churn_model',2,'production',100,'1','2','shell:ann','reason 2','{"log_loss": 0.61}','2026-11-22T12:00:00+00:00','2026-11-22T12:00:02+00:00');
INSERT INTO "ledger" VALUES('customer_churn_model',3,'production',100,'2','3','shell:ann','reason 3','{"log_loss": 0.61}','2026-11-23T12:00:00+00:00',NULL);
CREATE INDEX ix_decisions_model ON decisions (model);
CREATE INDEX ix_alerts_model ON alerts (model);
COMMIT;
