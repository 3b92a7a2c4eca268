"""Messages: accepted, started, ended, refused, cancelled, and put back by an operator."""

MESSAGES = """
create function {s}.accept(
  p_place text, p_rank int, p_lane text, p_session text, p_priority text, p_timeout double precision,
  p_when_busy text, p_body bytea, p_route bytea, p_dedupe text, p_digest bytea, p_repeat int, p_first boolean,
  p_again bigint, p_ask text, p_token bigint, p_node bigint, p_claims boolean)
returns table (id bigint, is_new boolean, same_body boolean, state text, owner bigint, before bigint[])
language plpgsql as $$
#variable_conflict use_column
declare
  s {s}.session; known {s}.message; made bigint; older bigint[]; mine bigint; hint boolean;
begin
  s := {s}.locked(p_place);
  for attempt in 1..10 loop
    select m.* into known from {s}.message m
     where m.token = p_token
        or p_dedupe is not null and m.lane = p_lane and coalesce(m.session, '') = coalesce(p_session, '')
           and m.dedupe = p_dedupe limit 1;
    if found then
      if known.token <> p_token then
        if s.pending = 0 and left(p_place, 2) = 'm:' then
          delete from {s}.session t where t.place = p_place;
        end if;
        return query select known.id, false, known.digest = p_digest, known.state, null::bigint, null::bigint[];
        return;
      end if;
      exit;
    end if;
    insert into {s}.message (place, lane, session, priority, timeout, when_busy, body, route, dedupe, digest, repeat,
        first, again, ask, token, taken_by)
      values (p_place, p_lane, p_session, p_priority, p_timeout, p_when_busy, p_body, p_route, p_dedupe, p_digest,
        p_repeat, p_first, p_again, p_ask, p_token, p_node)
      on conflict do nothing returning message.id into made;
    exit when made is not null;
  end loop;
  if made is null and known.id is null then
    raise exception 'lanes: the key of a message changes hands too often' using errcode = '40001';
  end if;
  mine := s.owner;
  if made is not null then
    if s.owner is null and p_claims and exists (select from {s}.node n where n.id = p_node for key share) then
      mine := p_node;
    end if;
    hint := mine is distinct from p_node;
    update {s}.session t set pending = s.pending + 1, owner = mine,
        fence = t.fence + case when mine is distinct from s.owner then 1 else 0 end,
        nonce = case when mine is distinct from s.owner then null else t.nonce end,
        rank = case when s.pending = 0 then p_rank else least(s.rank, p_rank) end,
        since = case when s.pending = 0 then made else s.since end
      where t.place = p_place;
    if hint then
      perform {s}.tell(coalesce(mine, 0));
    end if;
  end if;
  older := array(select m.id from {s}.message m  -- only `message_open` has the order that is asked for
    where m.place >= p_place and m.place <= p_place and m.state = 'accepted' and m.id < coalesce(made, known.id)
    order by m.place desc, m.id desc limit 50);
  if s.wanted then
    older := older || 0::bigint;  -- what comes after another node has asked for the session is for that node
  end if;
  return query select coalesce(made, known.id), true, true, coalesce(known.state, 'accepted'), mine, older;
end $$;

create function {s}.started(p_node bigint, p_place text, p_nonce bigint, p_ids bigint[], p_all boolean) returns bigint
language plpgsql as $$
declare f bigint := 0; parked boolean;
begin
  parked := exists (select from {s}.message m
    where m.id = any(p_ids) and m.state = 'parked' and left(m.place, 2) = 'm:');
  if parked then  -- nothing may be left of their places
    insert into {s}.session (place) select m.place from {s}.message m where m.id = any(p_ids) on conflict do nothing;
  end if;
  perform 1 from {s}.session t
    where t.place = any(array(select m.place::text from {s}.message m where m.id = any(p_ids)) || p_place)
    order by t.place for update;
  if parked and exists (select from {s}.node n where n.id = p_node for key share) then
    update {s}.session t set owner = p_node, fence = t.fence + 1, nonce = null
      where t.owner is null and left(t.place, 2) = 'm:'
        and t.place in (select m.place from {s}.message m where m.id = any(p_ids));
  end if;
  if p_place is null and exists (select from {s}.message m where m.id = any(p_ids) and m.step = p_nonce) then
    return 0;  -- it was done before
  end if;
  if p_all and not exists (select from {s}.session t where t.place = p_place and t.nonce = p_nonce) and (
      select count(*) from {s}.message m
      where m.id = any(p_ids) and m.state in ('accepted', 'started', 'parked')
        and (select t.owner from {s}.session t where t.place = m.place) = p_node
    ) <> cardinality(p_ids) then
    return -1;  -- one of them has ended elsewhere, or is another node's
  end if;
  if p_place is not null then
    update {s}.session t set fence = t.fence + 1, nonce = p_nonce, calls = 0, last_seq = null
      where t.place = p_place and t.owner = p_node and t.nonce is distinct from p_nonce returning t.fence into f;
    if not found then
      select t.fence into f from {s}.session t
        where t.place = p_place and t.owner = p_node and t.nonce = p_nonce;
      return f;  -- it was done before, or null: this node does not conduct it
    end if;
  end if;
  with o as (select m.id, m.place, m.state from {s}.message m
       where m.id = any(p_ids) and m.state in ('accepted', 'started', 'parked')
         and (select t.owner from {s}.session t where t.place = m.place) = p_node for update of m),
    u as (update {s}.message m set state = 'started', attempt = m.attempt + 1, started_at = clock_timestamp(),
       ended_at = null, reason = '', node = p_node, step = p_nonce from o where m.id = o.id returning m.id)
    update {s}.session t set pending = t.pending + p.n
      from (select o.place, count(*) n from o where o.state = 'parked' group by o.place) p where t.place = p.place;
  return f;
end $$;

create function {s}.waits_again(p_node bigint, p_ids bigint[]) returns void language plpgsql as $$
begin
  perform 1 from {s}.session t
    where t.place = any(array(select m.place::text from {s}.message m where m.id = any(p_ids)))
    order by t.place for update;
  update {s}.message m set state = 'accepted', started_at = null where m.id = any(p_ids) and m.state = 'started'
    and (select t.owner from {s}.session t where t.place = m.place) = p_node;
end $$;

create function {s}.ended(
  p_node bigint, p_ids bigint[], p_state text, p_reason text, p_result bytea, p_before text[],
  p_token bigint) returns int
language plpgsql as $$
declare n int;
begin
  perform 1 from {s}.session t
    where t.place = any(array(select m.place from {s}.message m where m.id = any(p_ids)))
    order by t.place for update;
  with o as (select m.id, m.place, m.taken_by, m.state in ('accepted', 'started') as is_open
       from {s}.message m where m.id = any(p_ids) and m.state = any(p_before)
         and (m.state not in ('accepted', 'started')
           or (select t.owner from {s}.session t where t.place = m.place) = p_node) for update of m),
    u as (update {s}.message m set state = p_state, ended_at = clock_timestamp(), reason = p_reason,
       result = p_result, step = coalesce(p_token, m.step) from o where m.id = o.id),
    c as (update {s}.session t set pending = t.pending - p.n
       from (select o.place, count(*) n from o where o.is_open group by o.place) p where t.place = p.place)
    select count(*) into n from o;
  perform {s}.tell(m.taken_by) from {s}.message m join {s}.node d on d.id = m.taken_by
    where m.id = any(p_ids) and m.taken_by <> p_node group by m.taken_by;
  if p_token is not null then  -- with what an earlier call has ended whose answer was lost
    select count(*) into n from {s}.message m where m.id = any(p_ids) and m.step = p_token;
  end if;
  return n;
end $$;

-- Of what cannot be asked for again; programs of step 0 call it, too.
create function {s}.ended(p_node bigint, p_ids bigint[], p_state text, p_reason text, p_result bytea, p_before text[])
returns int language sql as $$
  select {s}.ended(p_node, p_ids, p_state, p_reason, p_result, p_before, null) $$;

create function {s}.cancelled(p_node bigint, p_lane text, p_session text, p_reason text, p_token bigint,
  p_message bigint default null, p_upto bigint default null) returns setof bigint
language plpgsql as $$
declare places text[];
begin
  select array_agg(l.place) into places from (
    select t.place from {s}.session t where (t.owner is null or t.owner = p_node) and t.place in (
      select m.place from {s}.message m where m.state = 'accepted' and (p_lane is null or m.lane = p_lane)
        and (p_session is null or m.session = p_session) and (p_message is null or m.id = p_message)
        and (p_upto is null or m.id <= p_upto)) order by t.place for update) l;
  with u as (update {s}.message m set state = 'cancelled', ended_at = clock_timestamp(), reason = p_reason,
      step = p_token
      where m.place = any(places) and m.state = 'accepted' and (p_lane is null or m.lane = p_lane)
        and (p_session is null or m.session = p_session) and (p_message is null or m.id = p_message)
        and (p_upto is null or m.id <= p_upto) returning m.place)
    update {s}.session t set pending = t.pending - p.n
      from (select u.place, count(*) n from u group by u.place) p where t.place = p.place;
  -- With what an earlier call has done whose answer was lost.
  return query select m.id from {s}.message m
    where m.step = p_token and m.state = 'cancelled' and m.ended_at > clock_timestamp() - interval '1 hour';
end $$;

create function {s}.refused(p_node bigint, p_id bigint, p_reason text, p_before text[]) returns boolean
language plpgsql as $$
begin
  perform {s}.ended(p_node, array[p_id], 'dropped', p_reason, null, p_before);
  update {s}.message m set dedupe = null where m.id = p_id and m.state = 'dropped';
  return found;  -- false: another node has it, and it will be answered
end $$;

create function {s}.again(p_id bigint, p_token bigint default null) returns boolean language plpgsql as $$
declare v_place text; o bigint;
begin
  select m.place into v_place from {s}.message m where m.id = p_id;
  if not found then return false; end if;
  o := ({s}.locked(v_place)).owner;
  update {s}.message m set state = 'accepted', attempt = 0, ended_at = null, reason = '', started_at = null,
      accepted_at = clock_timestamp(), step = p_token,
      when_busy = 'queue'  -- an old one interrupts and supersedes nothing newer
    where m.id = p_id and m.state in ('parked', 'dropped', 'unknown');
  if not found then
    return exists (select from {s}.message m where m.id = p_id and m.step = p_token);
  end if;
  update {s}.session t set pending = t.pending + 1, since = case when t.pending = 0 then p_id else least(t.since, p_id)
    end where t.place = v_place;
  perform {s}.tell(coalesce(o, 0));
  return true;
end $$;
"""
